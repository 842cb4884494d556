package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// filesWord is what the probe does with volumes; known is false for other words.
func filesWord(args []string) (known bool, err error) {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	n, _ := strconv.ParseInt(arg(2), 10, 64)
	switch args[0] {
	case "tree":
		return true, tree(args[1:])
	case "environ":
		return true, environ()
	case "write":
		return true, write(arg(1), n)
	case "hashof":
		return true, hashOf(arg(1))
	case "fill":
		return true, fill(arg(1), n)
	case "cat":
		b, err := os.ReadFile(arg(1))
		os.Stdout.Write(b)
		return true, err
	case "put":
		return true, os.WriteFile(arg(1), []byte(arg(2)), 0o644)
	case "link":
		return true, os.Symlink(arg(1), arg(2))
	case "loop":
		return true, loop(arg(1), time.Duration(n)*time.Second)
	case "whoami":
		return true, whoami()
	}
	return false, nil
}

// tree prints all that lies below the paths: kind, permissions, path, and the
// hash of a file or the target of a link.
func tree(paths []string) error {
	for _, p := range paths {
		err := filepath.WalkDir(p, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			i, err := d.Info()
			if err != nil {
				return err
			}
			switch what := ""; {
			case i.Mode().IsRegular():
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				fmt.Printf("%v %s %d %x\n", i.Mode(), p, len(b), sha256.Sum256(b))
			case i.Mode()&fs.ModeSymlink != 0:
				if what, err = os.Readlink(p); err != nil {
					return err
				}
				fmt.Printf("%v %s -> %s\n", i.Mode().Type(), p, what)
			default:
				fmt.Printf("%v %s\n", i.Mode(), p)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// environ prints the environment, values as hashes, so that any byte is seen.
func environ() error {
	var all []string
	for _, e := range os.Environ() {
		k, v, _ := strings.Cut(e, "=")
		all = append(all, fmt.Sprintf("%s %d %x", k, len(v), sha256.Sum256([]byte(v))))
	}
	slices.Sort(all)
	fmt.Println(strings.Join(all, "\n"))
	return nil
}

// write writes n bytes that nobody could guess, syncs, and prints their hash.
func write(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	h := sha256.New()
	src := io.LimitReader(rand.NewChaCha8([32]byte{byte(n), byte(time.Now().Nanosecond())}), n)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, src, make([]byte, 1<<20)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Printf("%d %x\n", n, h.Sum(nil))
	return nil
}

func hashOf(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20))
	fmt.Printf("%d %x\n", n, h.Sum(nil))
	return err
}

// fill writes n bytes to a disk that has not the room: the error has to come, at
// write, fsync or close, and what was said to be written has to be there.
func fill(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	block := bytes.Repeat([]byte("x"), 1<<20)
	at := "write"
	for done := int64(0); done < n && err == nil; done += int64(len(block)) {
		_, err = f.Write(block)
	}
	if err == nil {
		at, err = "fsync", f.Sync()
	}
	if cerr := f.Close(); err == nil {
		at, err = "close", cerr
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("want ENOSPC, got %v", err)
	}
	fmt.Println("ENOSPC at", at)
	return nil
}

// loop writes numbered records, each synced and read back, for as long as told,
// and then checks all of them. It prints the number, and the longest pause.
func loop(path string, limit time.Duration) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	rec := make([]byte, 4096)
	fillRec := func(i int64) {
		for j := 0; j < len(rec); j += 8 {
			binary.LittleEndian.PutUint64(rec[j:], uint64(i)*1099511628211+uint64(j))
		}
	}
	got := make([]byte, len(rec))
	var n int64
	var longest time.Duration
	for end := time.Now().Add(limit); time.Now().Before(end); n++ {
		began := time.Now()
		fillRec(n)
		if _, err := f.WriteAt(rec, n*int64(len(rec))); err != nil {
			return fmt.Errorf("write record %d: %w", n, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync record %d: %w", n, err)
		}
		if _, err := f.ReadAt(got, n*int64(len(rec))); err != nil || !bytes.Equal(got, rec) {
			return fmt.Errorf("record %d is torn, or: %v", n, err)
		}
		longest = max(longest, time.Since(began))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) != n*int64(len(rec)) {
		return fmt.Errorf("%d bytes of %d records, %v", len(b), n, err)
	}
	for i := range n {
		fillRec(i)
		if !bytes.Equal(b[i*int64(len(rec)):(i+1)*int64(len(rec))], rec) {
			return fmt.Errorf("record %d is torn in the end", i)
		}
	}
	fmt.Printf("%d records, longest pause %d ms\n", n, longest.Milliseconds())
	return nil
}

// whoami asks the API server, with client-go as a program in the pod would.
func whoami() error {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	fmt.Println(r.Status.UserInfo.Username)
	return nil
}
