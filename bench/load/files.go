package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// What the volume rows read: one large file, and two trees of small ones, so that
// what one row leaves in caches is of no use to the next.
const (
	largeFile  = "large"
	largeSize  = 1 << 30
	folders    = 100
	inFolder   = 100 // files
	smallSize  = 4 << 10
	statTree   = "stat"
	readTree   = "read"
	readBuffer = 1 << 20
)

// makeFiles writes them below dir.
func makeFiles(dir string) error {
	noise := rand.NewChaCha8([32]byte{1})
	block := make([]byte, 1<<20)
	f, err := os.Create(filepath.Join(dir, largeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	for range largeSize / len(block) {
		_, _ = noise.Read(block) // never fails
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	for _, tree := range []string{statTree, readTree} {
		for i := range folders {
			d := filepath.Join(dir, tree, fmt.Sprintf("d%02d", i))
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
			for j := range inFolder {
				if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%02d", j)), block[:smallSize], 0o644); err != nil {
					return err
				}
			}
		}
	}
	return f.Close()
}

// readFiles prints for how long, in milliseconds, the large file is read from its
// begin to its end, all files of one tree are looked at by name, and those of the
// other are read.
func readFiles(dir string) error {
	each := func(tree string, do func(path string) error) error {
		for i := range folders {
			for j := range inFolder {
				if err := do(filepath.Join(dir, tree, fmt.Sprintf("d%02d", i), fmt.Sprintf("f%02d", j))); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, step := range []func() error{
		func() error { return sequential(filepath.Join(dir, largeFile)) },
		func() error {
			return each(statTree, func(p string) error {
				i, err := os.Lstat(p)
				if err == nil && i.Size() != smallSize {
					err = fmt.Errorf("%s has %d bytes", p, i.Size())
				}
				return err
			})
		},
		func() error {
			return each(readTree, func(p string) error {
				b, err := os.ReadFile(p)
				if err == nil && len(b) != smallSize {
					err = fmt.Errorf("%s has %d bytes", p, len(b))
				}
				return err
			})
		},
	} {
		t := time.Now()
		if err := step(); err != nil {
			return err
		}
		fmt.Printf("%.1f ", float64(time.Since(t).Microseconds())/1000)
	}
	fmt.Println()
	return nil
}

func sequential(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, readBuffer)
	var n int64
	for {
		k, err := f.Read(b)
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if n != largeSize {
		return fmt.Errorf("%s has %d bytes", path, n)
	}
	return nil
}
