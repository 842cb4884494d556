package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/services/telemount/internal/door"
	"berth.dev/services/telemount/internal/doortest"
	"berth.dev/services/telemount/internal/volume"
	"berth.dev/tunnel"
)

// options are those of a volume of t's engagement.
func options(t door.Target, path string) map[string]string {
	return map[string]string{"engagement": t.Engagement, "container": "c", "door": t.Door, "pin": t.Pin, "path": path}
}

// TestLoops is the whole plugin, on its socket, as Docker uses it: 20 volumes,
// each mounted, used and unmounted again and again, ten at once. Nothing of it
// may be left: in the mount table, in the state, in the process.
func TestLoops(t *testing.T) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	} else {
		f.Close()
	}
	const volumes, atOnce = 20, 10
	rounds := 100
	if testing.Short() {
		rounds = 5
	}
	served := t.TempDir()
	if err := os.WriteFile(served+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	key, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	opts := options(doortest.Serve(t, key.Pin(), served), served)

	root := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	dial := door.New(key, "test", log)
	defer dial.Close()
	vs, err := volume.Open(root, root+"/state.json", dial, log)
	if err != nil {
		t.Fatal(err)
	}
	defer vs.Close()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: New(vs, log)}
	go srv.Serve(l)
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	call := func(verb string, in any) (out struct{ Err, Mountpoint string }) {
		b, _ := json.Marshal(in)
		r, err := client.Post("http://plugin/VolumeDriver."+verb, "application/json", bytes.NewReader(b))
		if err != nil {
			out.Err = err.Error()
			return out
		}
		defer r.Body.Close()
		if err := json.NewDecoder(r.Body).Decode(&out); err != nil {
			out.Err = err.Error()
		}
		return out
	}
	type named struct {
		Name, ID string
		Opts     map[string]string
	}
	round := func(rounds int) {
		slots := make(chan struct{}, atOnce)
		var wg sync.WaitGroup
		for i := range volumes {
			wg.Go(func() {
				name := fmt.Sprintf("v%d", i)
				slots <- struct{}{}
				out := call("Create", named{Name: name, Opts: opts})
				<-slots
				for r := range rounds {
					slots <- struct{}{}
					id := fmt.Sprint(r)
					if out.Err == "" {
						out = call("Mount", named{Name: name, ID: id})
					}
					if out.Err == "" {
						if b, err := os.ReadFile(out.Mountpoint + "/f"); err != nil || string(b) != "x" {
							t.Errorf("%s: read %q, %v", name, b, err)
						}
						out = call("Unmount", named{Name: name, ID: id})
					}
					<-slots
				}
				if out.Err == "" {
					out = call("Remove", named{Name: name})
				}
				if out.Err != "" {
					t.Errorf("%s: %s", name, out.Err)
				}
			})
		}
		wg.Wait()
	}
	// settle is the number of goroutines once it is at most limit, or no longer
	// changes, or ten seconds are over.
	settle := func(limit int) (n int) {
		same := 0
		for end := time.Now().Add(10 * time.Second); same < 50 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			client.CloseIdleConnections()
			now := runtime.NumGoroutine()
			if same++; now != n {
				n, same = now, 0
			}
			if n <= limit {
				break
			}
		}
		return n
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what lies in pools goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	round(1) // what is made once is there from now on
	before, memory := settle(0), heap()
	round(rounds)
	if n := settle(before); n > before {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after\n%s", before, n, buf[:runtime.Stack(buf, true)])
	}
	if now := heap(); now > memory+16<<20 {
		t.Errorf("heap grew from %d to %d MB", memory>>20, now>>20)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), root) {
		t.Error("something is still mounted")
	}
	left, err := filepath.Glob(root + "/*")
	if err != nil || len(left) != 1 {
		t.Errorf("left in the folder of mount points: %v, %v", left, err)
	}
	if b, err := os.ReadFile(root + "/state.json"); err != nil || strings.TrimSpace(string(b)) != "{}" {
		t.Errorf("state %s, %v", b, err)
	}
}

// A volume's options and the state hold no token; a volume whose engagement is
// over is refused with the reason, at once.
func TestNoSecretInState(t *testing.T) {
	served, root := t.TempDir(), t.TempDir()
	key, _ := tunnel.NewIdentity()
	opts := options(doortest.Serve(t, key.Pin(), served), served)
	dial := door.New(key, "test", slog.New(slog.DiscardHandler))
	defer dial.Close()
	var log bytes.Buffer
	vs, err := volume.Open(root, root+"/state.json", dial, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer vs.Close()
	if err := vs.Create("v", opts); err != nil {
		t.Fatal(err)
	}
	if _, err := vs.Mount(t.Context(), "v", "1"); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	b, _ := os.ReadFile(root + "/state.json")
	// An engine that was killed never unmounts, and still removes.
	if err := vs.Remove("v"); err != nil {
		t.Error(err)
	}
	if m, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(m), root) {
		t.Error("a volume that was removed is still mounted")
	}
	if strings.Contains(string(b)+log.String(), "canary") {
		t.Errorf("the token is in the state or the log: %s %s", b, log.String())
	}
}

// told is a door that is never reached, and is told things.
type told struct {
	*door.Dialer
	lost chan string
}

func (d told) Release(t door.Target) {
	if d.Dialer != nil {
		d.Dialer.Release(t)
	}
}

func (d told) Lost(_ context.Context, t door.Target, cause string) error {
	d.lost <- t.Engagement + " " + cause
	return nil
}

// silent is a door that never answers; it says how each caller ended.
type silent struct {
	told
	asked chan struct{}
	ended chan error
}

func (d silent) Token(ctx context.Context, _ door.Target) (string, error) {
	d.asked <- struct{}{}
	<-ctx.Done()
	d.ended <- ctx.Err()
	return "", ctx.Err()
}

// An engine that starts again after a crash ends the uses of the volumes that it
// had, and removes them. It does not wait until the plugin, which mounts them again
// meanwhile, has given up a door that is gone.
func TestUnwantedIsNotMountedAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*volume.Set) error
	}{
		{"unmount", func(vs *volume.Set) error { return vs.Unmount("v", "1") }},
		{"remove", func(vs *volume.Set) error { return vs.Remove("v") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			const state = `{"v":{"spec":{"engagement":"e","door":"192.0.2.1:1","pin":"p","path":"/data","timeout":1000000000},"ids":{"1":true}}}`
			if err := os.WriteFile(root+"/state.json", []byte(state), 0o600); err != nil {
				t.Fatal(err)
			}
			d := silent{told{nil, make(chan string, 10)}, make(chan struct{}, 1), make(chan error, 1)}
			vs, err := volume.Open(root, root+"/state.json", d, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer vs.Close()
			<-d.asked
			if err := c.end(vs); err != nil {
				t.Error(err)
			}
			if err := <-d.ended; err != context.Canceled {
				t.Errorf("it was waited for the door until %v", err)
			}
		})
	}
}

// Whose volumes are lost is told once for each engagement: when the plugin ends
// while they are used, and when it comes back after it was killed. Volumes that
// nobody uses are not lost.
func TestLostIsTold(t *testing.T) {
	served, root := t.TempDir(), t.TempDir()
	key, _ := tunnel.NewIdentity()
	log := slog.New(slog.DiscardHandler)
	open := func() (told, *volume.Set) {
		d := told{door.New(key, "test", log), make(chan string, 10)}
		t.Cleanup(d.Close)
		vs, err := volume.Open(root, root+"/state.json", d, log)
		if err != nil {
			t.Fatal(err)
		}
		return d, vs
	}
	all := func(d told) (got []string) {
		for len(d.lost) > 0 {
			got = append(got, <-d.lost)
		}
		slices.Sort(got)
		return got
	}
	d, vs := open()
	for name, engagement := range map[string]string{"a": "e1", "b": "e1", "c": "e2", "unused": "e3"} {
		to := doortest.Serve(t, key.Pin(), served)
		to.Engagement = engagement
		if engagement == "e1" {
			to.Door, to.Pin = "127.0.0.1:1", "p" // one door
		}
		if err := vs.Create(name, options(to, served)); err != nil {
			t.Fatal(err)
		}
	}
	vs.Close()
	if got := all(d); len(got) > 0 {
		t.Errorf("nobody used anything: %v", got)
	}
	b, err := os.ReadFile(root + "/state.json")
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]map[string]any
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	for name, e := range state {
		if name != "unused" {
			e["ids"] = map[string]bool{"1": true}
		}
	}
	if b, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/state.json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, vs = open()
	for end := time.Now().Add(5 * time.Second); len(d.lost) < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if got := all(d); !slices.Equal(got, []string{"e1 was killed", "e2 was killed"}) {
		t.Errorf("after a kill: %v", got)
	}
	vs.Close()
	if got := all(d); !slices.Equal(got, []string{"e1 is ending", "e2 is ending"}) {
		t.Errorf("at the end: %v", got)
	}
}
