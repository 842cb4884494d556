package remote

import (
	"context"

	"berth.dev/bus/buildstream"

	"github.com/docker/docker/api/types/registry"
	"github.com/moby/buildkit/session/auth"
	"google.golang.org/grpc"
)

// Auths gives BuildKit the caller's credentials for registries. It fetches no
// tokens itself: the engine does, when it is told so.
type Auths struct {
	auth.UnimplementedAuthServer
	Of map[string]buildstream.Auth
}

// Register implements session.Attachable.
func (a Auths) Register(s *grpc.Server) { auth.RegisterAuthServer(s, a) }

// Docker's configuration knows Docker Hub by another name than its registry.
const (
	hubKey  = "https://index.docker.io/v1/"
	hubHost = "registry-1.docker.io"
)

// Credentials implements auth.AuthServer. None is an answer too.
func (a Auths) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	key := r.Host
	if key == hubHost {
		key = hubKey
	}
	c := a.Of[key]
	if c.IdentityToken != "" {
		return &auth.CredentialsResponse{Secret: c.IdentityToken}, nil
	}
	return &auth.CredentialsResponse{Username: c.Username, Secret: c.Password}, nil
}

// Configs are the credentials as the classic builder takes them.
func (a Auths) Configs() map[string]registry.AuthConfig {
	m := map[string]registry.AuthConfig{}
	for k, c := range a.Of {
		m[k] = registry.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth, ServerAddress: c.ServerAddress, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	}
	return m
}
