package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// Path is where the manager serves the tunnel.
	Path = "/berth/v1/tunnel"
	// UpgradeProtocol is the token in the Upgrade header.
	UpgradeProtocol = "berth"
)

// UpgradeError is a server's answer other than 101.
type UpgradeError struct {
	Status int
	Body   []byte // the first 16 KiB; the API server's is a metav1.Status
}

func (e *UpgradeError) Error() string {
	text := strings.TrimSpace(string(e.Body[:min(len(e.Body), 200)]))
	return fmt.Sprintf("the far side answered %d %s instead of switching protocols: %s", e.Status, http.StatusText(e.Status), text)
}

// Upgrade answers 101 to a request for the tunnel and takes its connection
// over; the handler then returns or goes on with Serve as it likes. When it
// fails it has answered the request.
func Upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", UpgradeProtocol) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", UpgradeProtocol)
		http.Error(w, "this path serves the Berth tunnel", http.StatusUpgradeRequired)
		return nil, errors.New("upgrade: the request does not ask for it")
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this server cannot switch protocols", http.StatusInternalServerError)
		return nil, fmt.Errorf("upgrade: hijack: %w", err)
	}
	_ = conn.SetDeadline(time.Time{}) // those of the http.Server
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + UpgradeProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("upgrade: answer 101: %w", err)
	}
	return unread(conn, rw.Reader), nil
}

// hasToken says whether a comma-separated header has token, in any case.
func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// RequestUpgrade sends the request for the tunnel on conn and waits for 101.
// Any other answer is an *UpgradeError; conn is then closed, as after every
// error. The context counts until it returns.
func RequestUpgrade(ctx context.Context, conn net.Conn, host, path string, header http.Header) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	out, err := requestUpgrade(conn, host, path, header)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	return out, nil
}

func requestUpgrade(conn net.Conn, host, path string, header http.Header) (net.Conn, error) {
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return nil, err
	}
	req := &http.Request{Method: http.MethodGet, URL: u, Host: host, Header: header.Clone()}
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", UpgradeProtocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		_ = resp.Body.Close()
		return nil, &UpgradeError{Status: resp.StatusCode, Body: body}
	}
	return unread(conn, br), nil
}

// unread returns conn with the bytes that r has read ahead put back.
func unread(conn net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return conn
	}
	ahead, _ := r.Peek(n)
	return &aheadConn{Conn: conn, ahead: append([]byte(nil), ahead...)}
}

// aheadConn yields ahead before what conn yields. As with most connections,
// one goroutine reads.
type aheadConn struct {
	net.Conn
	ahead []byte
}

func (c *aheadConn) NetConn() net.Conn { return c.Conn }

func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n, nil
}

func (c *aheadConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
