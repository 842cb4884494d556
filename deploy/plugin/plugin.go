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

// Status is what the engine has of the plugin.
type Status struct {
	Installed, Enabled bool
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

// State asks the engine.
func (e Engine) State(ctx context.Context) (Status, error) {
	var p struct{ Enabled bool }
	err := e.call(ctx, "GET", "/plugins/"+Name+"/json", nil, &p)
	var a *apiError
	if errors.As(err, &a) && a.code == http.StatusNotFound {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, fmt.Errorf("inspect plugin: %w", err)
	}
	return Status{Installed: true, Enabled: p.Enabled}, nil
}

// Install creates the plugin of the static binary and enables it. One that is
// installed is only enabled: remove it first for another version.
func (e Engine) Install(ctx context.Context, binary []byte) error {
	s, err := e.State(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if !s.Installed {
		b, err := archive(binary)
		if err != nil {
			return fmt.Errorf("pack plugin: %w", err)
		}
		if err := e.call(ctx, "POST", "/plugins/create?name="+url.QueryEscape(Name), bytes.NewReader(b), nil); err != nil {
			return fmt.Errorf("%w: create: %w", ErrRefused, err)
		}
	}
	if s.Enabled {
		return nil
	}
	if err := e.call(ctx, "POST", "/plugins/"+Name+"/enable?timeout=15", nil, nil); err != nil {
		if !s.Installed {
			_ = e.call(context.WithoutCancel(ctx), "DELETE", "/plugins/"+Name+"?force=1", nil, nil)
		}
		return fmt.Errorf("%w: enable: %w", ErrRefused, err)
	}
	return nil
}

// Remove disables and removes the plugin, even while volumes are in use. One that
// is not there is no error.
func (e Engine) Remove(ctx context.Context) error {
	s, err := e.State(ctx)
	if err != nil || !s.Installed {
		return err
	}
	if s.Enabled {
		if err := e.call(ctx, "POST", "/plugins/"+Name+"/disable?force=1", nil, nil); err != nil {
			return fmt.Errorf("disable plugin: %w", err)
		}
	}
	if err := e.call(ctx, "DELETE", "/plugins/"+Name+"?force=1", nil, nil); err != nil {
		return fmt.Errorf("remove plugin: %w", err)
	}
	return nil
}

func archive(binary []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"rootfs/", "rootfs/run/", "rootfs/run/docker/", "rootfs/run/docker/plugins/", "rootfs/mnt/", "rootfs/mnt/volumes/", "rootfs/proc/", "rootfs/sys/", "rootfs/dev/", "rootfs/etc/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{{"config.json", 0o644, config}, {"rootfs/telemount", 0o755, binary}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
