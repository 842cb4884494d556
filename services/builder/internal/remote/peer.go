// Package remote is the context of a build as builder sees it: it lies with the
// caller, at the other end of a stream (package buildstream), and is read from
// there when the engine asks for it. Builder stores nothing of it.
//
// A Peer is safe for concurrent use. It ends with its stream; Gone says so, and
// every read under way fails then.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth.dev/bus/buildstream"
)

// Peer is the caller at the other end.
type Peer struct {
	conn  *buildstream.Conn
	Hello buildstream.Hello

	listed  chan struct{} // closed when the list is complete or failed
	entries []buildstream.Entry
	listErr error

	gone chan struct{}
	err  error // why, once gone is closed

	mu     sync.Mutex
	next   uint32
	wait   map[uint32]chan []byte
	agents map[uint32]*io.PipeWriter
	failed error // a read that failed: whatever was built is not the context
}

// NewPeer is the peer that has said hello. Serve must run.
func NewPeer(conn *buildstream.Conn, hello buildstream.Hello) *Peer {
	return &Peer{conn: conn, Hello: hello, listed: make(chan struct{}), gone: make(chan struct{}), wait: map[uint32]chan []byte{}, agents: map[uint32]*io.PipeWriter{}}
}

// ErrGone is the cause of a build whose caller is gone.
var ErrGone = errors.New("the caller is gone")

// Serve receives until the stream ends.
func (p *Peer) Serve() {
	err := p.receive()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	select {
	case <-p.listed:
	default:
		p.listErr = fmt.Errorf("%w: %w", ErrGone, err)
		close(p.listed)
	}
	for _, w := range p.agents {
		_ = w.CloseWithError(err)
	}
	close(p.gone)
}

func (p *Peer) receive() error {
	complete := false
	for {
		f, err := p.conn.Receive()
		if err != nil {
			return err
		}
		switch f.Kind {
		case buildstream.KindEntries:
			var more []buildstream.Entry
			if err := json.Unmarshal(f.Payload, &more); err != nil || complete {
				return fmt.Errorf("receive the list of the context: %w", errors.Join(err, io.ErrUnexpectedEOF))
			}
			p.entries = append(p.entries, more...)
		case buildstream.KindEntriesEnd:
			if complete {
				return errors.New("the list of the context ends twice")
			}
			complete = true
			if len(f.Payload) > 0 {
				p.listErr = errors.New(string(f.Payload))
			}
			close(p.listed)
		case buildstream.KindData:
			p.mu.Lock()
			w := p.wait[f.ID]
			delete(p.wait, f.ID)
			p.mu.Unlock()
			if w != nil {
				w <- f.Payload // has room for the one answer
			}
		case buildstream.KindAgentData, buildstream.KindAgentClose:
			p.agent(f)
		default:
			return fmt.Errorf("receive: a frame of kind %d is not the caller's to send", f.Kind)
		}
	}
}

// Gone is closed when the stream has ended.
func (p *Peer) Gone() <-chan struct{} { return p.gone }

// Entries waits for the list of the context.
func (p *Peer) Entries(ctx context.Context) ([]buildstream.Entry, error) {
	select {
	case <-p.listed:
		return p.entries, p.listErr
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Tell sends progress; a caller that is gone is noticed elsewhere.
func (p *Peer) Tell(x buildstream.Progress) { _ = p.conn.SendJSON(buildstream.KindProgress, 0, x) }

// Done says that the terminal fact has been stated.
func (p *Peer) Done() { _ = p.conn.Send(buildstream.KindDone, 0) }

// Close ends the stream.
func (p *Peer) Close() { _ = p.conn.Close() }

// Failed is the first read that failed, whether the engine was told or not:
// BuildKit's own file transfer takes a file that cannot be opened for an empty one.
func (p *Peer) Failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *Peer) note(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = err
	}
	return err
}

// read asks for bytes; last says that there are none behind them.
func (p *Peer) read(ctx context.Context, r buildstream.Read) (data []byte, last bool, err error) {
	answer := make(chan []byte, 1)
	p.mu.Lock()
	p.next++
	id := p.next
	p.wait[id] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.wait, id)
		p.mu.Unlock()
	}()
	if err := p.conn.SendJSON(buildstream.KindRead, id, r); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case a := <-answer:
		switch {
		case len(a) > 0 && a[0] == buildstream.Last:
			return a[1:], true, nil
		case len(a) > 1 && a[0] == buildstream.More:
			return a[1:], false, nil
		case len(a) > 0 && a[0] == buildstream.Failed:
			return nil, false, errors.New(string(a[1:]))
		}
		return nil, false, errors.New("the caller answered a read with nothing")
	case <-p.gone:
		return nil, false, ErrGone
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

// Secret is the value of a secret.
func (p *Peer) Secret(ctx context.Context, id string) ([]byte, error) {
	b, _, err := p.read(ctx, buildstream.Read{What: buildstream.WhatSecret, Name: id})
	return b, err
}

// Stdin is the tar that the caller has on its standard input. It is read once.
func (p *Peer) Stdin(ctx context.Context) io.ReadCloser {
	return p.reader(ctx, buildstream.Read{What: buildstream.WhatStdin}, -1)
}

// file is the content of an entry, exactly as long as it was listed.
func (p *Peer) file(ctx context.Context, index int, size int64) io.ReadCloser {
	return p.reader(ctx, buildstream.Read{What: buildstream.WhatFile, Index: index}, size)
}

func (p *Peer) reader(ctx context.Context, r buildstream.Read, size int64) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	return &reader{p: p, ctx: ctx, cancel: cancel, ask: r, size: size}
}

// reader reads by asking for piece after piece.
type reader struct {
	p      *Peer
	ctx    context.Context
	cancel context.CancelFunc
	ask    buildstream.Read
	size   int64 // listed; -1 if not known
	have   []byte
	last   bool
}

func (r *reader) Read(b []byte) (int, error) {
	for len(r.have) == 0 {
		if r.last || r.size >= 0 && r.ask.Offset >= r.size {
			if r.size >= 0 && r.ask.Offset != r.size {
				return 0, r.p.note(fmt.Errorf("a file of the context changed while it was being read: %d of %d bytes", r.ask.Offset, r.size))
			}
			return 0, io.EOF
		}
		var err error
		if r.have, r.last, err = r.p.read(r.ctx, r.ask); err != nil {
			if r.ctx.Err() == nil {
				err = r.p.note(err)
			}
			return 0, err
		}
		if r.size >= 0 && r.ask.Offset+int64(len(r.have)) > r.size {
			r.have = r.have[:r.size-r.ask.Offset] // it has grown since
		}
		r.ask.Offset += int64(len(r.have))
	}
	n := copy(b, r.have)
	r.have = r.have[n:]
	return n, nil
}

func (r *reader) Close() error { r.cancel(); return nil }
