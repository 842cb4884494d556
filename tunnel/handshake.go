package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"berth.dev/tunnel/internal/cork"
)

// Version is the version of what is said inside the mux: Hello, Welcome,
// headers and RPC methods. Ends of different versions do not talk.
const Version = 1

const (
	handshakeTimeout = 10 * time.Second
	// helloMax bounds what an unauthenticated peer can make us hold.
	helloMax = 64 << 10
	// alpn keeps the inner TLS from being mistaken for any other.
	alpn = "berth-tunnel"
)

// Hello is what the dialling side says first, inside the inner TLS.
type Hello struct {
	Version int    `json:"version"`          // filled in by Dial when 0
	Role    string `json:"role"`             // "vif", "agent", "telemount", …
	ID      string `json:"id,omitempty"`     // of the connection, or of the pod for an agent
	Token   string `json:"token,omitempty"`  // proves what the pin alone does not; secret
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
	Extra          json.RawMessage `json:"extra,omitempty"` // role-specific
}

// answer is Welcome or a refusal, on the wire.
type answer struct {
	Welcome *Welcome  `json:"welcome,omitempty"`
	Error   *RPCError `json:"error,omitempty"`
	Version int       `json:"version"`
}

// PinError says that the far side is not who was expected: another
// installation, or someone between.
type PinError struct{ Want, Got Pin }

func (e *PinError) Error() string {
	return fmt.Sprintf("the far side's key is %s, expected %s", e.Got, e.Want)
}

// Dial makes conn, which it owns from now on, a session as the client: inner
// TLS 1.3 in which the server must hold the key of serverPin, then hello and
// the answer. All of it takes 10 s at most.
//
// A refusal is an *RPCError with the server's words; other errors are
// *PinError, *VersionError, or about conn.
func Dial(ctx context.Context, conn net.Conn, id *Identity, serverPin Pin, hello Hello, cfg Config) (*Session, *Welcome, error) {
	if id == nil || serverPin == "" {
		_ = conn.Close()
		return nil, nil, errors.New("tunnel handshake: an identity and the server's pin are required")
	}
	config := tlsConfig(id)
	config.ServerName = "berth"
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return &PinError{Want: serverPin}
		}
		if got := pinOf(cs.PeerCertificates[0]); got != serverPin {
			return &PinError{Want: serverPin, Got: got}
		}
		return nil
	}
	if hello.Version == 0 {
		hello.Version = Version
	}
	Tune(conn)
	socket := cork.New(conn)
	tc := cork.Over(tls.Client(socket, config), socket)
	var reply answer
	err := withTimeout(ctx, conn, func(ctx context.Context) error {
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("inner TLS: %w", err)
		}
		if err := writeJSON(tc, hello); err != nil {
			return fmt.Errorf("send hello: %w", err)
		}
		if err := readJSON(tc, &reply); err != nil {
			return fmt.Errorf("read welcome: %w", err)
		}
		return nil
	})
	switch {
	case err != nil:
	case reply.Version != hello.Version:
		err = &VersionError{What: "protocol", Local: hello.Version, Remote: reply.Version}
	case reply.Error != nil:
		err = reply.Error
	case reply.Welcome == nil:
		err = protocolErrorf("an answer without welcome")
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("tunnel handshake: %w", err)
	}
	return NewSession(tc, true, cfg), reply.Welcome, nil
}

// Serve makes conn, which it owns from now on, a session as the server. auth
// decides on the hello and the peer's key, of which only possession is proven;
// the message of its error reaches the dialling side, with code and hint if
// errors.As finds an *RPCError. All but auth takes 10 s at most.
func Serve(ctx context.Context, conn net.Conn, id *Identity, auth func(ctx context.Context, h Hello, peer Pin) (*Welcome, error), cfg Config) (*Session, Hello, Pin, error) {
	config := tlsConfig(id)
	config.ClientAuth = tls.RequireAnyClientCert
	Tune(conn)
	socket := cork.New(conn)
	tc := cork.Over(tls.Server(socket, config), socket)
	var hello Hello
	var pin Pin
	fail := func(err error) (*Session, Hello, Pin, error) {
		_ = conn.Close()
		return nil, hello, pin, fmt.Errorf("tunnel handshake: %w", err)
	}
	err := withTimeout(ctx, conn, func(ctx context.Context) error {
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("inner TLS: %w", err)
		}
		pin = pinOf(tc.ConnectionState().PeerCertificates[0])
		if err := readJSON(tc, &hello); err != nil {
			return fmt.Errorf("read hello: %w", err)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	reply := answer{Version: Version}
	var refusal error
	if hello.Version != Version {
		refusal = &VersionError{What: "protocol", Local: Version, Remote: hello.Version}
	} else {
		reply.Welcome, refusal = auth(ctx, hello, pin)
		if refusal == nil && reply.Welcome == nil {
			reply.Welcome = &Welcome{}
		}
	}
	if refusal != nil {
		reply.Welcome, reply.Error = nil, asRPCError(refusal)
	} else if reply.Welcome.Version == 0 {
		w := *reply.Welcome // auth may hand out a shared one
		w.Version = Version
		reply.Welcome = &w
	}
	err = withTimeout(ctx, conn, func(context.Context) error {
		if err := writeJSON(tc, reply); err != nil {
			return fmt.Errorf("send answer: %w", err)
		}
		if refusal != nil {
			// Let the far side read and close first: closing with unread
			// bytes would reset the connection under the answer.
			_ = tc.CloseWrite()
			_, _ = io.Copy(io.Discard, io.LimitReader(tc, helloMax))
		}
		return nil
	})
	if refusal != nil {
		err = fmt.Errorf("refused %s %q: %w", hello.Role, hello.ID, refusal)
	}
	if err != nil {
		return fail(err)
	}
	return NewSession(tc, false, cfg), hello, pin, nil
}

func tlsConfig(id *Identity) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		NextProtos:   []string{alpn},
		// Chains, names and dates mean nothing here; the pin does.
		InsecureSkipVerify:          true,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // bulk from the first byte
	}
}

// withTimeout runs f, which ends early when conn is closed by the context's
// end or by handshakeTimeout.
func withTimeout(ctx context.Context, conn net.Conn, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, fmt.Errorf("no answer within %v: %w", handshakeTimeout, context.DeadlineExceeded))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err := f(ctx)
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

func writeJSON(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > helloMax {
		return fmt.Errorf("%d bytes, more than %d", len(body), helloMax)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readJSON(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > helloMax {
		return protocolErrorf("%d bytes where at most %d may come", n, helloMax)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return protocolErrorf("%w", err)
	}
	return nil
}
