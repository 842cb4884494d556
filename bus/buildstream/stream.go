// Package buildstream is the wire between ctl, which has a build's context, and
// builder, which builds: a byte stream of its own, no part of NATS, since build
// contexts and secrets never ride the bus.
//
// ctl opens it after builder has accepted the build and says Hello with the
// token that it was given; the token admits one stream. ctl lists the context
// (Entries, EntriesEnd), and from then on builder asks (Read) and ctl answers
// (Data), so that only what the engine wants to have travels: BuildKit asks for
// the files that have changed since the last build of the same context, the
// classic builder for all. Every Read is bounded and answered by one Data, so
// no reader can hold up another. builder tells the progress meanwhile and says
// Done after the terminal fact has been stated. Whoever closes the stream
// earlier cancels the build.
//
// A frame is a kind (1 byte), an id (4 bytes), a length (4 bytes, big endian)
// and as many bytes. The package needs the standard library only.
package buildstream

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// Kind is what a frame is.
type Kind byte

// The kinds. The id ties Data to its Read, and the Agent frames of one
// connection to each other; it is 0 elsewhere.
const (
	KindHello      Kind = 1 + iota // ctl: JSON of Hello
	KindEntries                    // ctl: JSON of []Entry, in the order of Walk
	KindEntriesEnd                 // ctl: the list is complete, or why not
	KindRead                       // builder: JSON of Read
	KindData                       // ctl: one byte More, Last or Failed, then bytes or the reason
	KindProgress                   // builder: JSON of Progress
	KindDone                       // builder: the terminal fact is stated
	KindAgentOpen                  // builder: connect to the ssh agent of that name
	KindAgentData                  // both
	KindAgentClose                 // both
)

// First byte of Data.
const (
	More   byte = iota // there may be more behind these bytes
	Last               // there is nothing behind them
	Failed             // the rest says why
)

const (
	// MaxFrame is the largest payload.
	MaxFrame = 4 << 20
	// ReadSize is what one Read asks for at most.
	ReadSize = 1 << 20
)

// Hello opens the stream.
type Hello struct {
	ID    string `json:"id"`
	Token string `json:"token"`
	// Key is the same for all builds of one directory, and no other's: by it
	// BuildKit finds what it has of the context.
	Key string `json:"key,omitempty"`
	// Auths are what the user's configuration has for registries, by address.
	Auths map[string]Auth `json:"auths,omitempty"`
}

// Auth is an entry of Docker's own configuration.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Auth          string `json:"auth,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// Entry is a file, directory or symbolic link of the context.
type Entry struct {
	Path  string      `json:"p"`           // with slashes, relative
	Mode  fs.FileMode `json:"m"`           // with type bits
	Size  int64       `json:"s,omitempty"` // of a file
	MTime int64       `json:"t"`           // nanoseconds
	Link  string      `json:"l,omitempty"` // target of a symbolic link, never followed
	// Outside marks the Dockerfile that lies outside the context. It is no part
	// of the context and comes first.
	Outside bool `json:"o,omitempty"`
}

// Read asks for bytes.
type Read struct {
	What   string `json:"what"`             // file, stdin, secret
	Index  int    `json:"index,omitempty"`  // of the file among all entries
	Offset int64  `json:"offset,omitempty"` // in the file; stdin has none
	Name   string `json:"name,omitempty"`   // of the secret
}

// What may be read.
const (
	WhatFile   = "file"
	WhatStdin  = "stdin"
	WhatSecret = "secret"
)

// Frame is one frame.
type Frame struct {
	Kind    Kind
	ID      uint32
	Payload []byte
}

// Conn is one end. One goroutine receives; any may send.
type Conn struct {
	r  *bufio.Reader
	rw io.ReadWriteCloser

	mu sync.Mutex
	w  *bufio.Writer
}

// New makes an end of a byte stream.
func New(rw io.ReadWriteCloser) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 64<<10), w: bufio.NewWriterSize(rw, 64<<10), rw: rw}
}

// Close closes the byte stream under it.
func (c *Conn) Close() error { return c.rw.Close() }

// Send sends a frame; several pieces of payload are sent as one.
func (c *Conn) Send(kind Kind, id uint32, payload ...[]byte) error {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	if n > MaxFrame {
		return fmt.Errorf("send a frame of kind %d: %d bytes are too many", kind, n)
	}
	var head [9]byte
	head[0] = byte(kind)
	binary.BigEndian.PutUint32(head[1:], id)
	binary.BigEndian.PutUint32(head[5:], uint32(n))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range append([][]byte{head[:]}, payload...) {
		if _, err := c.w.Write(p); err != nil {
			return err
		}
	}
	return c.w.Flush()
}

// SendJSON sends v as a frame.
func (c *Conn) SendJSON(kind Kind, id uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("marshal a frame of kind %d: %w", kind, err)
	}
	return c.Send(kind, id, b)
}

// Receive waits for the next frame. io.EOF is an end between two frames.
func (c *Conn) Receive() (Frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: Kind(head[0]), ID: binary.BigEndian.Uint32(head[1:])}
	n := binary.BigEndian.Uint32(head[5:])
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("receive a frame of kind %d: %d bytes are too many", f.Kind, n)
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(c.r, f.Payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}
