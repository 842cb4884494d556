package tunnel

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
)

// Version is the version of Hello, Welcome, stream headers and RPC methods.
const Version = 1

// Hello is what the dialling side says first.
type Hello struct {
	Version int    `json:"version"`          // filled in by Dial when 0
	Role    string `json:"role"`             // "vif", "agent", "telemount", …
	ID      string `json:"id,omitempty"`     // of the connection, or of the pod for an agent
	Token   string `json:"token,omitempty"`  // proves what the pin alone does not; a secret
	Client  string `json:"client,omitempty"` // program and version, for logs
}

// Welcome is the server's answer.
type Welcome struct {
	Version        int             `json:"version"` // filled in by Serve when 0
	ServerVersion  string          `json:"serverVersion,omitempty"`
	InstallationID string          `json:"installationID,omitempty"`
	ClusterDomain  string          `json:"clusterDomain,omitempty"`
	DNS            []netip.Addr    `json:"dns,omitempty"`
	Subnets        []netip.Prefix  `json:"subnets,omitempty"`
	Extra          json.RawMessage `json:"extra,omitempty"`
}

// Dial makes conn a session, as the client.
func Dial(ctx context.Context, conn net.Conn, id *Identity, serverPin Pin, hello Hello, cfg Config) (*Session, *Welcome, error) {
	return nil, nil, errTODO
}

// Serve makes conn a session, as the server.
func Serve(ctx context.Context, conn net.Conn, id *Identity, auth func(ctx context.Context, h Hello, peer Pin) (*Welcome, error), cfg Config) (*Session, Hello, Pin, error) {
	return nil, Hello{}, "", errTODO
}
