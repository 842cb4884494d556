// Package driver speaks Docker's volume plugin API v1 (docs.docker.com, Engine,
// Plugin volume API): JSON over HTTP on a unix socket; an answer's Err is empty
// or the message that the user sees. It keeps nothing; calls run side by side.
package driver

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"

	"berth.dev/services/telemount/internal/volume"
)

type request struct {
	Name, ID string
	Opts     map[string]string
}

type info struct {
	Name       string
	Mountpoint string         `json:",omitempty"`
	Status     map[string]any `json:",omitempty"`
}

type response struct {
	Err          string
	Mountpoint   string            `json:",omitempty"`
	Volume       *info             `json:",omitempty"`
	Volumes      []info            `json:",omitempty"`
	Capabilities map[string]string `json:",omitempty"`
	Implements   []string          `json:",omitempty"`
}

// New makes the handler.
func New(vs *volume.Set, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	on := func(path string, f func(context.Context, request, *response) error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var in request
			var out response
			// Docker sends no body with some calls.
			_ = json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&in)
			if err := f(r.Context(), in, &out); err != nil {
				out = response{Err: err.Error()}
				log.Warn("call failed", "call", path, "volume", in.Name, "err", err)
			}
			w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1+json")
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	on("/Plugin.Activate", func(_ context.Context, _ request, out *response) error {
		out.Implements = []string{"VolumeDriver"}
		return nil
	})
	on("/VolumeDriver.Capabilities", func(_ context.Context, _ request, out *response) error {
		out.Capabilities = map[string]string{"Scope": "local"}
		return nil
	})
	on("/VolumeDriver.Create", func(_ context.Context, in request, _ *response) error { return vs.Create(in.Name, in.Opts) })
	on("/VolumeDriver.Remove", func(_ context.Context, in request, _ *response) error { return vs.Remove(in.Name) })
	on("/VolumeDriver.Mount", func(ctx context.Context, in request, out *response) (err error) {
		out.Mountpoint, err = vs.Mount(ctx, in.Name, in.ID)
		return err
	})
	on("/VolumeDriver.Unmount", func(_ context.Context, in request, _ *response) error { return vs.Unmount(in.Name, in.ID) })
	on("/VolumeDriver.Path", func(_ context.Context, in request, out *response) (err error) {
		out.Mountpoint, err = vs.Path(in.Name)
		return err
	})
	on("/VolumeDriver.Get", func(_ context.Context, in request, out *response) error {
		p, err := vs.Path(in.Name)
		out.Volume = &info{Name: in.Name, Mountpoint: p}
		if t := vs.Trouble(in.Name); t != "" {
			out.Volume.Status = map[string]any{"trouble": t}
		}
		return err
	})
	on("/VolumeDriver.List", func(_ context.Context, _ request, out *response) error {
		for _, n := range vs.Names() {
			p, _ := vs.Path(n)
			out.Volumes = append(out.Volumes, info{Name: n, Mountpoint: p})
		}
		return nil
	})
	return mux
}
