package build

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"berth.dev/bus/buildstream"
	"berth.dev/bus/fault"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// source is a context: what it is, and where its Dockerfile lies.
type source struct {
	kind       string // directory, stdin or remote
	dir        string // absolute
	remote     string
	dockerfile string // path in the context; "" leaves it to the engine
	outside    string // path of a Dockerfile that lies outside the context
}

// remoteContext is what Docker takes for a URL.
var remoteContext = regexp.MustCompile(`^(https?://|git://|git@|github\.com/|ssh://)`)

// locate reads the word that names the context: a directory, a Dockerfile (its
// directory is the context), a URL, or - for a tar on standard input. file is
// the option of that name, relative to where ctl is, as with docker build.
func locate(word, file string) (*source, error) {
	switch {
	case word == "":
		return nil, fault.New(fault.InvalidArgument, "ctl build .", "no build context given")
	case word == "-":
		return &source{kind: "stdin", dockerfile: file}, nil
	case remoteContext.MatchString(word):
		return &source{kind: "remote", remote: word, dockerfile: file}, nil
	}
	info, err := os.Stat(word)
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "the build context %s: %v", word, plainPath(err))
	}
	if !info.IsDir() {
		if file != "" {
			return nil, fault.New(fault.InvalidArgument, "", "the build context %s is a Dockerfile, and the option file names another, %s", word, file)
		}
		file, word = word, filepath.Dir(word)
	}
	s := &source{kind: "directory"}
	if s.dir, err = filepath.Abs(word); err != nil {
		return nil, fmt.Errorf("make %s absolute: %w", word, err)
	}
	// Docker resolves the context's own path, and no link below it.
	if s.dir, err = filepath.EvalSymlinks(s.dir); err != nil {
		return nil, fault.New(fault.NotFound, "", "the build context %s: %v", word, plainPath(err))
	}
	return s, s.find(file)
}

// find finds the Dockerfile.
func (s *source) find(file string) error {
	if file == "" {
		s.dockerfile = "Dockerfile"
		if _, err := os.Lstat(filepath.Join(s.dir, s.dockerfile)); errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "--docker-build-opt file=PATH", "there is no Dockerfile in %s", s.dir)
		}
		return nil
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("make %s absolute: %w", file, err)
	}
	info, err := os.Stat(abs)
	switch {
	case err != nil:
		return fault.New(fault.NotFound, "", "the Dockerfile %s: %v", file, plainPath(err))
	case !info.Mode().IsRegular():
		return fault.New(fault.InvalidArgument, "", "the Dockerfile %s is not a file", file)
	}
	// By its real place: a link in the context may lead out of it.
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return fault.New(fault.NotFound, "", "the Dockerfile %s: %v", file, plainPath(err))
	}
	rel, err := filepath.Rel(s.dir, real)
	if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		s.outside, s.dockerfile = real, ""
		return nil
	}
	s.dockerfile = filepath.ToSlash(rel)
	return nil
}

// plainPath is err without the call and the path, which the message names.
func plainPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// list lists the context without what .dockerignore names. The Dockerfile and
// the ignore file itself are always in it: the engine reads them, and takes them
// out again where they are ignored.
func (s *source) list() ([]buildstream.Entry, error) {
	verdict, err := s.sieve()
	if err != nil {
		return nil, err
	}
	entries, err := buildstream.List(s.dir, verdict)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "", "%v", err)
	}
	if s.outside == "" {
		return entries, nil
	}
	info, err := os.Stat(s.outside)
	if err != nil {
		return nil, fault.New(fault.NotFound, "", "the Dockerfile %s: %v", s.outside, plainPath(err))
	}
	first := buildstream.Entry{Path: ".dockerfile." + strings.ToLower(rand.Text()[:20]), Mode: info.Mode(), Size: info.Size(), MTime: info.ModTime().UnixNano(), Outside: true}
	return append([]buildstream.Entry{first}, entries...), nil
}

// sieve says of each path of the context, directories before what is in them,
// what becomes of it.
func (s *source) sieve() (func(path string, dir bool) (buildstream.Verdict, error), error) {
	patterns, err := s.ignored()
	if err != nil {
		return nil, err
	}
	pm, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "", "the .dockerignore of %s: %v", s.dir, err)
	}
	always := map[string]bool{".dockerignore": true}
	if s.dockerfile != "" {
		always[s.dockerfile], always[s.dockerfile+".dockerignore"] = true, true
	}
	infos := map[string]patternmatcher.MatchInfo{}
	return func(path string, dir bool) (buildstream.Verdict, error) {
		if len(patterns) == 0 || always[path] {
			return buildstream.Keep, nil
		}
		parent := ""
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent = path[:i]
		}
		drop, info, err := pm.MatchesUsingParentResults(filepath.FromSlash(path), infos[parent])
		if err != nil {
			return buildstream.Keep, err
		}
		if dir {
			infos[path] = info
		}
		switch {
		case !drop:
			return buildstream.Keep, nil
		case dir && (pm.Exclusions() || holds(path, always)):
			return buildstream.Look, nil // something below may be kept all the same
		}
		return buildstream.Skip, nil
	}, nil
}

func holds(dir string, paths map[string]bool) bool {
	for p := range paths {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// ignored are the patterns of the Dockerfile's own ignore file, else of the context's.
func (s *source) ignored() ([]string, error) {
	names := []string{filepath.Join(s.dir, ".dockerignore")}
	switch {
	case s.outside != "":
		names = append([]string{s.outside + ".dockerignore"}, names...)
	case s.dockerfile != "":
		names = append([]string{filepath.Join(s.dir, filepath.FromSlash(s.dockerfile)) + ".dockerignore"}, names...)
	}
	for _, n := range names {
		f, err := os.Open(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.New(fault.FailedPrecondition, "", "read %s: %v", n, plainPath(err))
		}
		defer f.Close()
		p, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, fault.New(fault.InvalidArgument, "", "read %s: %v", n, err)
		}
		return p, nil
	}
	return nil, nil
}

// key is the same for all builds of this directory on this machine.
func (s *source) key() string {
	if s.dir == "" {
		return ""
	}
	host, _ := os.Hostname() // empty is a key as well
	sum := sha256.Sum256([]byte(host + "\x00" + s.dir))
	return hex.EncodeToString(sum[:])
}

// caller is builder's counterpart for this context; close ends it.
func (s *source) caller(stdin io.Reader) (c *buildstream.Caller, closeRoot func(), err error) {
	c = &buildstream.Caller{Outside: s.outside}
	switch s.kind {
	case "stdin":
		c.Stdin = stdin
	case "directory":
		if c.Entries, err = s.list(); err != nil {
			return nil, nil, err
		}
		if c.Root, err = os.OpenRoot(s.dir); err != nil {
			return nil, nil, fault.New(fault.FailedPrecondition, "", "open the build context: %v", err)
		}
		return c, func() { _ = c.Root.Close() }, nil
	}
	return c, func() {}, nil
}
