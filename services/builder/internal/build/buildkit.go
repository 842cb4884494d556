package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"berth.dev/services/builder/internal/remote"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
)

// refusedSession says that the engine has no BuildKit for us; nothing was built.
type refusedSession struct{ err error }

func (e *refusedSession) Error() string { return e.err.Error() }

// buildkit builds with the engine's BuildKit, which asks for what it needs over
// a session: of the context only what has changed since the last time.
func (j *job) buildkit() error {
	key := ""
	if j.from != nil {
		key = j.from.Hello.Key
	}
	if key == "" {
		key = j.req.ID
	}
	s, err := session.NewSession(j.ctx, key)
	if err != nil {
		return fmt.Errorf("make a BuildKit session: %w", err)
	}
	opt := j.parsed.Build
	opt.Version = build.BuilderBuildKit
	opt.BuildID = j.req.ID
	opt.SessionID = s.ID()
	j.dockerfile(&opt)
	if err := j.provide(s, &opt); err != nil {
		return err
	}
	dialled := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := s.Run(j.ctx, func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			c, err := j.api.DialHijack(ctx, "/session", proto, meta)
			dialled <- err
			return c, err
		})
		if err != nil {
			select {
			case dialled <- err:
			default:
			}
		}
	}()
	defer func() {
		_ = s.Close()
		<-ended
	}()
	select {
	case err := <-dialled:
		if err != nil {
			return j.ofContext(&refusedSession{err})
		}
	case <-j.ctx.Done():
		return context.Cause(j.ctx)
	}
	resp, err := j.api.ImageBuild(j.ctx, nil, opt)
	if err != nil {
		if noBuildKit(err) {
			err = &refusedSession{err}
		}
		return j.ofContext(err)
	}
	defer resp.Body.Close()
	j.started()
	t := tracer{tell: j.tell}
	err = read(j.ctx, resp.Body, func(m message) {
		switch m.ID {
		case "moby.image.id":
			j.id = imageID(m.Aux)
		case "moby.buildkit.trace":
			var raw []byte
			if json.Unmarshal(m.Aux, &raw) == nil {
				t.see(raw)
			}
		}
	})
	t.over(err)
	return j.ofContext(err)
}

// noBuildKit: the engine says that it cannot, rather than that the build cannot.
func noBuildKit(err error) bool {
	if errdefs.IsNotImplemented(err) {
		return true
	}
	msg := strings.ToLower(err.Error())
	return strings.Contains(msg, "buildkit") && (strings.Contains(msg, "not supported") || strings.Contains(msg, "not enabled") || strings.Contains(msg, "requires"))
}

// provide adds to the session what the build may ask for.
func (j *job) provide(s *session.Session, opt *build.ImageBuildOptions) error {
	if j.from != nil {
		s.Allow(remote.Auths{Of: j.from.Hello.Auths})
	} else {
		s.Allow(remote.Auths{})
	}
	if len(j.parsed.Secrets) > 0 {
		s.Allow(secretsprovider.NewSecretProvider(j))
	}
	if len(j.parsed.Agents) > 0 && j.from != nil {
		s.Allow(remote.Agents{Peer: j.from, Names: j.parsed.Agents})
	}
	switch j.req.Context {
	case contextRemote:
		opt.RemoteContext = j.req.Remote
	case contextStdin:
		up := uploadprovider.New()
		s.Allow(up)
		opt.RemoteContext = up.Add(j.from.Stdin(j.ctx))
	case contextDirectory:
		files, err := remote.Context(j.ctx, j.from, j.list)
		if err != nil {
			return err
		}
		dockerfile, err := remote.Dockerfile(j.ctx, j.from, j.list)
		if err != nil {
			return err
		}
		s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": dockerfile}))
		opt.RemoteContext = "client-session"
	}
	return nil
}

// GetSecret implements secrets.SecretStore: the value comes from the caller when
// a step asks for it, and is kept nowhere.
func (j *job) GetSecret(ctx context.Context, id string) ([]byte, error) {
	for _, known := range j.parsed.Secrets {
		if known != id || j.from == nil {
			continue
		}
		b, err := j.from.Secret(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", id, err)
		}
		return b, nil
	}
	return nil, errors.Join(secrets.ErrNotFound)
}
