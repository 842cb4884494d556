package handlerrun

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
)

func api(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := engine.Open(t.Context())
	if err != nil {
		t.Fatalf("these tests need a Docker Engine: %v", err)
	}
	t.Cleanup(e.Close)
	return e
}

const scratch = "berth-test-handlerrun:scratch"

func importScratch(t *testing.T, e *engine.Engine) {
	t.Helper()
	r, err := e.API.ImageImport(t.Context(), image.ImportSource{Source: bytes.NewReader(make([]byte, 1024)), SourceName: "-"}, scratch, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = e.API.ImageRemove(context.Background(), scratch, image.RemoveOptions{Force: true})
	})
}

var errStop = errors.New("captured")

func capture(t *testing.T, e *engine.Engine, args ...string) (*Spec, error) {
	t.Helper()
	var got *Spec
	_, err := Run(t.Context(), Options{API: e.API, Stdin: io.NopCloser(strings.NewReader("")), Stdout: io.Discard, Stderr: io.Discard, Args: args, Handler: true},
		Hooks{Create: func(_ context.Context, s Spec) (string, []string, error) { got = &s; return "", nil, errStop }})
	return got, err
}

func TestArguments(t *testing.T) {
	e := api(t)
	importScratch(t, e)
	s, err := capture(t, e, "-i", "--name", "mine", "-e", "A=b c", "-v", "vol:/data:ro", "-p", "8080:80", "--memory", "64m", "--network", "n1", scratch, "cmd", "-d", "--rm")
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	var cfg container.Config
	var host container.HostConfig
	if err := errors.Join(json.Unmarshal(s.Handler.Config, &cfg), json.Unmarshal(s.Handler.HostConfig, &host)); err != nil {
		t.Fatal(err)
	}
	if s.Handler.Name != "mine" || !s.Handler.Attach || s.TTY || !cfg.OpenStdin || strings.Join(cfg.Cmd, " ") != "cmd -d --rm" || cfg.Image != scratch {
		t.Errorf("got %+v, config %+v", s.Handler, cfg)
	}
	if !host.AutoRemove || host.Memory != 64<<20 || len(host.Binds) != 1 || len(host.PortBindings) != 1 || host.NetworkMode != "n1" || cfg.Env[len(cfg.Env)-1] != "A=b c" {
		t.Errorf("host config %+v, env %v", host, cfg.Env)
	}
}

// Wrong arguments are usage, and nothing is asked for.
func TestUsage(t *testing.T) {
	e := api(t)
	importScratch(t, e)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"-itd", scratch}, "--detach"},
		{[]string{"--detach", scratch}, "--detach"},
		{[]string{"--rm=false", scratch}, "--rm=false"},
		{[]string{"--no-such-flag", scratch}, "--no-such-flag"},
		{[]string{"-i"}, "no image"},
		{[]string{"--restart", "always", scratch}, "--restart cannot be used here: "},
		{[]string{"-p", "nonsense", scratch}, "nonsense"},
		{[]string{"UPPER/case"}, "reference"},
	} {
		s, err := capture(t, e, c.args...)
		if s != nil || fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: created %v, error %v, want a usage fault with %q", c.args, s != nil, err, c.says)
		}
	}
}

func TestImage(t *testing.T) {
	e := api(t)
	for _, args := range [][]string{{"--pull", "never", "berth-test-none:none"}, {"localhost:1/berth-test-none:none"}} {
		s, err := capture(t, e, args...)
		f := fault.From(err)
		if s != nil || f == nil || f.Stage != "image" || f.Code != fault.NotFound || !strings.Contains(f.Message, "berth-test-none") {
			t.Errorf("%v: created %v, error %+v", args, s != nil, f)
		}
	}
}

// A hook's fault comes back as it is, and a NotFound one pulls nothing.
func TestHookFault(t *testing.T) {
	e := api(t)
	importScratch(t, e)
	calls := 0
	want := fault.New(fault.NotFound, "ctl list", "no workload")
	_, err := Run(t.Context(), Options{API: e.API, Stdin: io.NopCloser(strings.NewReader("")), Stdout: io.Discard, Stderr: io.Discard, Args: []string{scratch}, Handler: true},
		Hooks{Create: func(context.Context, Spec) (string, []string, error) { calls++; return "", nil, want }})
	if !errors.Is(err, want) || calls != 1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
}

// Without the rules for handlers --rm is implied all the same, --detach is
// allowed, and the exit code of what did not run is Docker's.
func TestDockerRun(t *testing.T) {
	e := api(t)
	importScratch(t, e)
	for _, c := range []struct {
		says string
		code int
	}{
		{"no room", ExitNotRun},
		{`exec: "x": executable file not found in $PATH`, 127},
		{"exec: /x: permission denied", 126},
	} {
		var got Spec
		code, err := Run(t.Context(), Options{API: e.API, Stdin: io.NopCloser(strings.NewReader("")), Stdout: io.Discard, Stderr: io.Discard, Args: []string{"-d", scratch, "x"}},
			Hooks{Create: func(_ context.Context, s Spec) (string, []string, error) {
				got = s
				return "", nil, errors.New(c.says)
			}})
		if code != c.code || err == nil || err.Error() != c.says {
			t.Errorf("%s: code %d, error %v", c.says, code, err)
		}
		var host container.HostConfig
		if err := json.Unmarshal(got.Handler.HostConfig, &host); err != nil || !host.AutoRemove {
			t.Errorf("host config %+v, %v", host, err)
		}
	}
}

func TestStartCode(t *testing.T) {
	for message, code := range map[string]int{
		`start container x: failed to create shim: exec: "y": executable file not found in $PATH: unknown`: ExitNotFound,
		`start container x: exec: "/y": stat /y: no such file or directory`:                                ExitNotFound,
		`start container x: exec: "/etc": permission denied`:                                               ExitNotRunnable,
		`start container x: no space left`:                                                                 0,
		`read the environment: permission denied`:                                                          0,
	} {
		if got := StartCode(message); got != code {
			t.Errorf("%s: %d, want %d", message, got, code)
		}
	}
}
