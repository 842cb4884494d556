// Package standby is how a vif that is a process of this machine comes to its
// connection, and how it is held by it.
//
// Making the VIF takes privilege, which only ctl, at the user's terminal, can ask
// for; which connection it is for is decided later, by connector. So ctl starts
// vif, which dials runner's socket and stands by, and runner gives it its [Order]
// once there is a connection. From then on the stream is what holds the two:
//
//   - its end at vif's side (runner ended, or let go) is vif's order to undo
//     everything and end; runner, without privilege, could not signal it;
//   - its end at runner's side says that vif has ended, of whatever cause;
//   - what vif writes is its log.
//
// The socket lies in a directory that only the user may enter, and an order holds
// a key: it is never in a file.
package standby

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"berth.dev/bus"
)

// SocketName is the file name of runner's socket, in the directory of its files.
const SocketName = "vif.sock"

// Order is what vif is to be.
type Order struct {
	Connection string     `json:"connection"` // id
	Bus        bus.Config `json:"bus"`        // with the key of an identity for this connection
}

// hello is the first line that vif writes.
type hello struct {
	PID int `json:"pid"`
}

// helloWithin bounds the wait for it.
const helloWithin = 5 * time.Second

// maxLine bounds a line of either side.
const maxLine = 64 << 10

// Waiting is a vif that stands by, at runner's side.
type Waiting struct {
	PID  int
	conn net.Conn
	in   *bufio.Reader
}

// Accept takes a vif that has dialled.
func Accept(conn net.Conn) (*Waiting, error) {
	w := &Waiting{conn: conn, in: bufio.NewReaderSize(conn, maxLine)}
	_ = conn.SetReadDeadline(time.Now().Add(helloWithin))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	var h hello
	if err := readLine(w.in, &h); err != nil {
		return nil, fmt.Errorf("hear who stands by: %w", err)
	}
	w.PID = h.PID
	return w, nil
}

// Give gives the vif its order.
func (w *Waiting) Give(o Order) error { return writeLine(w.conn, o) }

// Log copies what vif says to out, until vif has ended.
func (w *Waiting) Log(out io.Writer) error {
	_, err := io.Copy(out, w.in)
	return err
}

// Release tells vif to end; it is to be waited for with Log.
func (w *Waiting) Release() {
	if c, ok := w.conn.(*net.UnixConn); ok {
		_ = c.CloseWrite()
	}
}

// Close ends the stream.
func (w *Waiting) Close() { _ = w.conn.Close() }

// Receive says who stands by, and waits for the order. An error says that none is
// to come: who would give it has ended.
func Receive(conn net.Conn, pid int) (Order, error) {
	var o Order
	if err := writeLine(conn, hello{pid}); err != nil {
		return o, fmt.Errorf("stand by: %w", err)
	}
	// Not buffered: what follows on the stream is its end, and for AwaitEnd.
	err := readLine(oneByOne{conn}, &o)
	return o, err
}

// AwaitEnd returns when the other side has ended the stream.
func AwaitEnd(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine never quotes the line, which may hold a key.
func readLine(r io.ByteReader, v any) error {
	var line []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b == '\n' {
			break
		}
		if line = append(line, b); len(line) > maxLine {
			return errors.New("the line is too long")
		}
	}
	if json.Unmarshal(line, v) != nil {
		return errors.New("the line is not the JSON that it should be")
	}
	return nil
}

// oneByOne reads single bytes.
type oneByOne struct{ r io.Reader }

func (o oneByOne) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(o.r, b[:])
	return b[0], err
}
