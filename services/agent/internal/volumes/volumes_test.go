package volumes

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"berth.dev/files"
	"berth.dev/lease"
	"berth.dev/tunnel"
)

// bench is a manager's session with an agent that serves dir and file.
func bench(t *testing.T, v *Volumes) *tunnel.Session {
	t.Helper()
	a, b := net.Pipe()
	manager, agent := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	go func() {
		for {
			r, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			go v.Serve(context.Background(), r)
		}
	}()
	t.Cleanup(func() { manager.Close(); agent.Close() })
	return manager
}

func connect(s *tunnel.Session, a lease.FilesAccess, token, root string) (*files.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return files.Connect(ctx, files.Options{Token: token, Root: root, Dial: func(ctx context.Context) (net.Conn, error) {
		return s.Open(ctx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: "e", Method: lease.Marshal(a)})
	}})
}

func TestWhoMayUseThem(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := New([]string{dir, file, dir + "/none"}, slog.New(slog.DiscardHandler))
	defer v.Close()
	if got, want := v.List(), []lease.Volume{{Path: dir}, {Path: file, File: true}}; !reflect.DeepEqual(got, want) {
		t.Errorf("list %v, want %v", got, want)
	}
	s := bench(t, v)
	good := lease.FilesAccess{TokenHash: lease.TokenHash("secret")}
	for _, x := range []struct {
		name   string
		access lease.FilesAccess
		token  string
		root   string
		want   error
	}{
		{"the token", good, "secret", dir, nil},
		{"a foreign token", good, "other", dir, syscall.EACCES},
		{"no token", good, "", dir, syscall.EACCES},
		{"the hash as the token", good, good.TokenHash, dir, syscall.EACCES},
		{"an engagement without one", lease.FilesAccess{}, "", dir, syscall.EACCES},
		{"what is not mounted", good, "secret", filepath.Dir(dir), syscall.ENOENT},
		{"what lies beside", good, "secret", dir + "/../..", syscall.ENOENT},
	} {
		c, err := connect(s, x.access, x.token, x.root)
		if !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
		if c != nil {
			c.Close()
		}
	}
}

// A single file is read through its own root; an engagement that may only read
// gets EROFS.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	v := New([]string{dir}, slog.New(slog.DiscardHandler))
	defer v.Close()
	s := bench(t, v)
	for _, ro := range []bool{true, false} {
		c, err := connect(s, lease.FilesAccess{TokenHash: lease.TokenHash("t"), ReadOnly: ro}, "t", dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Mkdir(context.Background(), "d", 0o755, files.Owner{})
		if ro && !errors.Is(err, syscall.EROFS) || !ro && err != nil {
			t.Errorf("read-only %v: mkdir: %v", ro, err)
		}
		c.Close()
	}
}

// An open file survives the manager: the session is another one, the server is not.
func TestSessionFindsItsServer(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := New([]string{dir}, slog.New(slog.DiscardHandler))
	defer v.Close()
	s := bench(t, v)
	c, err := files.Connect(t.Context(), files.Options{Token: "t", Root: dir, Dial: func(ctx context.Context) (net.Conn, error) {
		if s.Err() != nil {
			s = bench(t, v)
		}
		return s.Open(ctx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: "e", Method: lease.Marshal(lease.FilesAccess{TokenHash: lease.TokenHash("t")})})
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Open(t.Context(), func() (string, bool) { return "f", true }, syscall.O_RDONLY, 0, files.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/f"); err != nil { // by its name nobody finds it again
		t.Fatal(err)
	}
	s.Close()
	if b, err := f.ReadAsync(0, 100).Data(t.Context()); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
}
