// Package plugin installs telemount on an engine as a managed plugin, made of the
// binary and config.json, without a registry. It speaks the Engine API (1.25 and
// newer) with net/http, so that it costs its users no dependency.
package plugin

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Name of the plugin, which is the name of the volume driver.
const Name = "telemount:latest"

//go:embed config.json
var config []byte

// Engine is how to reach the Engine API, for example a Docker client's
// HTTPClient() and the URL "http://docker".
type Engine struct {
	HTTP *http.Client
	URL  string
}

// Unix reaches an engine by its socket.
func Unix(socket string) Engine {
	return Engine{URL: "http://docker", HTTP: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}}
}

// ErrRefused: the engine takes no managed plugins (rootless, Podman); the cause
// follows it. The socket plugin is what is left.
var ErrRefused = errors.New("engine refuses managed plugins")

// Contents is what a plugin is made of.
type Contents struct {
	Binary  []byte // telemount, static
	Key     []byte // its private key, PEM; it lies in the plugin's file system, mode 0600
	Pin     string // the public key's name; anybody may read it in the plugin's environment
	Version string
}

// Status is what the engine has of the plugin.
type Status struct {
	Installed, Enabled bool
	Version, Pin       string // as it was installed with
}

// ErrInUse: a plugin of another version is installed, and volumes of it exist.
var ErrInUse = errors.New("the plugin is in use")

// Of reaches the engine that a Docker client's HTTPClient() and DaemonHost() say.
// Over a network the engine is asked for that: sure tells that it has answered, so
// that the same holds as long as it is there.
func Of(c *http.Client, daemonHost string) (e Engine, sure bool) {
	u, err := url.Parse(daemonHost)
	if err != nil || u.Scheme != "tcp" && u.Scheme != "http" && u.Scheme != "https" {
		return Engine{HTTP: c, URL: "http://docker"}, true // the transport knows where
	}
	for _, scheme := range []string{"https", "http"} {
		if speaks(c, scheme, u.Host) {
			return Engine{HTTP: c, URL: scheme + "://" + u.Host}, true
		}
	}
	return Engine{HTTP: c, URL: "http://" + u.Host}, false // its own error is told by the call that follows
}

// speaks asks whether an engine answers at host by the scheme. The client's
// transport, which knows, is wrapped out of sight (Docker's client traces its calls).
func speaks(c *http.Client, scheme, host string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/_ping", nil)
	if err != nil {
		return false
	}
	a, err := c.Do(r)
	if err != nil {
		return false
	}
	_ = a.Body.Close()
	return a.StatusCode == http.StatusOK
}

func (e Engine) call(ctx context.Context, method, path string, body io.Reader, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, e.URL+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/x-tar")
	}
	a, err := e.HTTP.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(a.Body, 4096))
		return &apiError{a.StatusCode, string(bytes.TrimSpace(b))}
	}
	if out != nil {
		return json.NewDecoder(a.Body).Decode(out)
	}
	_, err = io.Copy(io.Discard, a.Body)
	return err
}

type apiError struct {
	code int
	msg  string
}

func (a *apiError) Error() string { return fmt.Sprintf("engine answers %d: %s", a.code, a.msg) }

func (a *apiError) is(code int) bool { return a != nil && a.code == code }

func asAPI(err error) *apiError {
	var a *apiError
	errors.As(err, &a)
	return a
}

// Names of the plugin's environment that tell what it is.
const (
	envVersion = "BERTH_PLUGIN_VERSION"
	envPin     = "BERTH_PLUGIN_PIN"
)

// State asks the engine.
func (e Engine) State(ctx context.Context) (Status, error) {
	s, _, err := e.look(ctx)
	return s, err
}

// look also says which plugin that is. What is removed is named by that: under the
// name another may be by then, somebody else's.
func (e Engine) look(ctx context.Context) (s Status, id string, err error) {
	var p struct {
		ID      string `json:"Id"`
		Enabled bool
		Config  struct {
			Env []struct {
				Name  string
				Value *string
			}
		}
	}
	err = e.call(ctx, "GET", "/plugins/"+Name+"/json", nil, &p)
	if asAPI(err).is(http.StatusNotFound) {
		return Status{}, "", nil
	}
	if err != nil {
		return Status{}, "", fmt.Errorf("inspect plugin: %w", err)
	}
	s = Status{Installed: true, Enabled: p.Enabled}
	for _, v := range p.Config.Env {
		switch {
		case v.Value == nil:
		case v.Name == envVersion:
			s.Version = *v.Value
		case v.Name == envPin:
			s.Pin = *v.Value
		}
	}
	return s, p.ID, nil
}

// Install makes sure that the plugin of c's version is installed and enabled,
// and says what is there then. One of another version is replaced unless volumes
// of it exist (ErrInUse; it goes on serving those). Two who install at once agree:
// what one of them finds half done, it looks at again.
func (e Engine) Install(ctx context.Context, c Contents) (Status, error) {
	b, err := archive(c)
	if err != nil {
		return Status{}, fmt.Errorf("pack plugin: %w", err)
	}
	began := time.Now()
	for try := 0; ; try++ {
		s, again, err := e.install(ctx, c, b)
		if err == nil || !again || try >= 20 && time.Since(began) > othersWithin {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// othersWithin is for how long somebody else may be at it, at least: a loaded engine
// takes some seconds to unpack a plugin, to start it or to stop it.
const othersWithin = 20 * time.Second

// install is one attempt; again says that somebody else may be at it.
func (e Engine) install(ctx context.Context, c Contents, packed []byte) (s Status, again bool, err error) {
	s, id, err := e.look(ctx)
	if err != nil {
		return s, false, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if s.Installed && (s.Version != c.Version || s.Pin == "") {
		err := e.remove(ctx, s, id, false)
		if err != nil && strings.Contains(err.Error(), "in use") {
			return s, false, fmt.Errorf("%w, and of version %s: %w", ErrInUse, s.Version, err)
		}
		if err != nil {
			return s, true, err
		}
		s = Status{}
	}
	mine := !s.Installed
	if mine {
		if err := e.call(ctx, "POST", "/plugins/create?name="+url.QueryEscape(Name), bytes.NewReader(packed), nil); err != nil {
			// While another one is made by that name it is locked, and then it is there.
			again := asAPI(err).is(http.StatusServiceUnavailable) || strings.Contains(err.Error(), "already exists")
			return s, again, fmt.Errorf("%w: create: %w", ErrRefused, err)
		}
		if s, id, err = e.look(ctx); err == nil && !s.Installed {
			err = errors.New("somebody has removed it")
		}
		if err != nil {
			return s, true, fmt.Errorf("%w: look at what was created: %w", ErrRefused, err)
		}
	}
	s, err = e.enable(ctx, s, id, mine)
	return s, err != nil && !mine, err
}

// enable enables the plugin; one that this call has made and that does not start
// is removed.
func (e Engine) enable(ctx context.Context, s Status, id string, mine bool) (Status, error) {
	if s.Enabled {
		return s, nil
	}
	// The timeout is that of every later call, and a call that runs into it is
	// repeated without its body: so longer than telemount takes for any.
	err := e.call(ctx, "POST", "/plugins/"+id+"/enable?timeout=60", nil, nil)
	if err == nil || strings.Contains(err.Error(), "already enabled") {
		s.Enabled = true
		return s, nil
	}
	if mine {
		_ = e.call(context.WithoutCancel(ctx), "DELETE", "/plugins/"+id+"?force=1", nil, nil)
		s = Status{}
	}
	return s, fmt.Errorf("%w: enable: %w", ErrRefused, err)
}

// Remove disables and removes the plugin, even while volumes are in use. One that
// is not there is no error.
func (e Engine) Remove(ctx context.Context) error {
	s, id, err := e.look(ctx)
	if err != nil || !s.Installed {
		return err
	}
	return e.remove(ctx, s, id, true)
}

// RemoveUnused is Remove, but fails with ErrInUse while a container uses a volume.
func (e Engine) RemoveUnused(ctx context.Context) error {
	s, id, err := e.look(ctx)
	if err != nil || !s.Installed {
		return err
	}
	if err := e.remove(ctx, s, id, false); err != nil {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return nil
}

func (e Engine) remove(ctx context.Context, s Status, id string, force bool) error {
	q := ""
	if force {
		q = "?force=1"
	}
	if s.Enabled {
		err := e.call(ctx, "POST", "/plugins/"+id+"/disable"+q, nil, nil)
		if err != nil && !asAPI(err).is(http.StatusNotFound) && !strings.Contains(err.Error(), "already disabled") {
			return fmt.Errorf("disable plugin: %w", err)
		}
	}
	if err := e.call(ctx, "DELETE", "/plugins/"+id+q, nil, nil); err != nil && !asAPI(err).is(http.StatusNotFound) {
		return fmt.Errorf("remove plugin: %w", err)
	}
	return nil
}

// manifest is config.json with what tells c from another plugin.
func manifest(c Contents) ([]byte, error) {
	var m map[string]any
	if err := json.Unmarshal(config, &m); err != nil {
		return nil, err
	}
	env, _ := m["env"].([]any)
	for _, kv := range [][2]string{{envVersion, c.Version}, {envPin, c.Pin}} {
		env = append(env, map[string]any{"name": kv[0], "value": kv[1]})
	}
	m["env"] = env
	return json.Marshal(m)
}

func archive(c Contents) ([]byte, error) {
	config, err := manifest(c)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(len(c.Binary) + 32<<10) // at once, rather than by doubling
	w := tar.NewWriter(&b)
	for _, d := range []string{"rootfs/", "rootfs/run/", "rootfs/run/docker/", "rootfs/run/docker/plugins/", "rootfs/mnt/", "rootfs/mnt/volumes/", "rootfs/proc/", "rootfs/sys/", "rootfs/dev/", "rootfs/etc/", "rootfs/etc/berth/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{{"config.json", 0o644, config}, {"rootfs/telemount", 0o755, c.Binary}, {"rootfs/etc/berth/telemount.pem", 0o600, c.Key}} {
		if f.data == nil {
			continue // no key, by hand
		}
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err = w.Close()
	return b.Bytes(), err
}
