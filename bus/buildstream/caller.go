package buildstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// Caller is ctl's end: what builder may read, and who is told the progress.
// Nothing else of the caller's machine can be read through the stream: files are
// named by their number in the list, and opened without leaving the context.
type Caller struct {
	Root     *os.Root // the context; nil if it is no directory
	Entries  []Entry
	Outside  string    // path of the Dockerfile outside, if the first entry is one
	Stdin    io.Reader // the context's tar, if it is one
	Secret   func(id string) ([]byte, error)
	Agent    func(name string) (net.Conn, error)
	Progress func(Progress)
}

// entriesPerFrame keeps a frame below some 200 kB.
const entriesPerFrame = 1000

// parallel is how many reads are answered at once: BuildKit sends four files at
// a time.
const parallel = 8

// Serve says hello, sends the list and answers until builder is done (nil), the
// stream breaks or ctx ends. It closes the stream.
func (c *Caller) Serve(ctx context.Context, conn *Conn, hello Hello) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SendJSON(KindHello, 0, hello); err != nil {
		return broken(ctx, err)
	}
	for rest := c.Entries; len(rest) > 0; {
		n := min(len(rest), entriesPerFrame)
		if err := conn.SendJSON(KindEntries, 0, rest[:n]); err != nil {
			return broken(ctx, err)
		}
		rest = rest[n:]
	}
	if err := conn.Send(KindEntriesEnd, 0); err != nil {
		return broken(ctx, err)
	}
	s := &serving{Caller: c, conn: conn, slots: make(chan struct{}, parallel), agents: map[uint32]net.Conn{}}
	defer s.end()
	for {
		f, err := conn.Receive()
		if err != nil {
			return broken(ctx, err)
		}
		switch f.Kind {
		case KindRead:
			var r Read
			if err := json.Unmarshal(f.Payload, &r); err != nil {
				return fmt.Errorf("read what builder asks for: %w", err)
			}
			if r.What == WhatStdin {
				// Not waited for: nobody can end a read of standard input. One
				// is under way at most, since builder waits for its answer.
				go s.answer(f.ID, r)
				continue
			}
			s.slots <- struct{}{}
			s.wg.Go(func() {
				defer func() { <-s.slots }()
				s.answer(f.ID, r)
			})
		case KindProgress:
			var p Progress
			if err := json.Unmarshal(f.Payload, &p); err != nil {
				return fmt.Errorf("read the progress: %w", err)
			}
			if c.Progress != nil {
				c.Progress(p)
			}
		case KindDone:
			return nil
		case KindAgentOpen, KindAgentData, KindAgentClose:
			s.agent(f)
		default:
			return fmt.Errorf("a frame of kind %d is not builder's to send", f.Kind)
		}
	}
}

func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("the stream to builder broke: %w", err)
}

// serving is a stream being served.
type serving struct {
	*Caller
	conn  *Conn
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	agents map[uint32]net.Conn
}

func (s *serving) end() {
	_ = s.conn.Close()
	s.mu.Lock()
	for _, a := range s.agents {
		_ = a.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// answer answers one Read. A stream that broke is noticed by Serve.
func (s *serving) answer(id uint32, r Read) {
	data, last, err := s.read(r)
	switch {
	case err != nil:
		_ = s.conn.Send(KindData, id, []byte{Failed}, []byte(err.Error()))
	case last:
		_ = s.conn.Send(KindData, id, []byte{Last}, data)
	default:
		_ = s.conn.Send(KindData, id, []byte{More}, data)
	}
}

func (s *serving) read(r Read) (data []byte, last bool, err error) {
	switch r.What {
	case WhatFile:
		return s.file(r.Index, r.Offset)
	case WhatStdin:
		if s.Stdin == nil {
			return nil, false, errors.New("standard input is not the context")
		}
		buf := make([]byte, ReadSize)
		n, err := io.ReadAtLeast(s.Stdin, buf, 1)
		if errors.Is(err, io.EOF) {
			return nil, true, nil
		}
		return buf[:n], false, err
	case WhatSecret:
		if s.Secret == nil {
			return nil, false, fmt.Errorf("no secret %q was given", r.Name)
		}
		data, err := s.Secret(r.Name)
		if err == nil && len(data) >= MaxFrame {
			err = fmt.Errorf("the secret %q is too large", r.Name)
		}
		return data, true, err
	}
	return nil, false, fmt.Errorf("nothing called %q can be read", r.What)
}

// file reads a piece of a listed file.
func (s *serving) file(index int, offset int64) ([]byte, bool, error) {
	if index < 0 || index >= len(s.Entries) || !s.Entries[index].Mode.IsRegular() || offset < 0 {
		return nil, false, fmt.Errorf("no file %d was listed", index)
	}
	e := s.Entries[index]
	var f *os.File
	var err error
	switch {
	case e.Outside:
		f, err = os.Open(s.Outside)
	case s.Root != nil:
		f, err = s.Root.Open(e.Path)
	default:
		err = errors.New("there is no context")
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	want := max(0, min(ReadSize, e.Size-offset))
	buf := make([]byte, want)
	n, err := f.ReadAt(buf, offset)
	if errors.Is(err, io.EOF) {
		return buf[:n], true, nil
	}
	return buf[:n], offset+int64(n) >= e.Size, err
}

// agent connects to an ssh agent, and passes on.
func (s *serving) agent(f Frame) {
	s.mu.Lock()
	a := s.agents[f.ID]
	s.mu.Unlock()
	switch f.Kind {
	case KindAgentOpen:
		if s.Agent == nil {
			_ = s.conn.Send(KindAgentClose, f.ID, []byte("no agent was given"))
			return
		}
		a, err := s.Agent(string(f.Payload))
		if err != nil {
			_ = s.conn.Send(KindAgentClose, f.ID, []byte(err.Error()))
			return
		}
		s.mu.Lock()
		s.agents[f.ID] = a
		s.mu.Unlock()
		s.wg.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := a.Read(buf)
				if n > 0 && s.conn.Send(KindAgentData, f.ID, buf[:n]) != nil || err != nil {
					_ = s.conn.Send(KindAgentClose, f.ID)
					return
				}
			}
		})
	case KindAgentData:
		if a != nil {
			_, _ = a.Write(f.Payload) // a broken agent is told by its reader
		}
	case KindAgentClose:
		if a != nil {
			_ = a.Close()
			s.mu.Lock()
			delete(s.agents, f.ID)
			s.mu.Unlock()
		}
	}
}
