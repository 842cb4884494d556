package tunnel

import (
	"context"
	"net"
	"net/http"
)

const (
	// Path is where the manager serves the tunnel.
	Path = "/berth/v1/tunnel"
	// UpgradeProtocol is the token of the Upgrade header.
	UpgradeProtocol = "berth"
)

// Upgrade answers 101 and takes the connection over.
func Upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) { return nil, errTODO }

// RequestUpgrade asks for the upgrade on conn.
func RequestUpgrade(ctx context.Context, conn net.Conn, host, path string, header http.Header) (net.Conn, error) {
	return nil, errTODO
}
