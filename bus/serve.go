package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go/micro"
)

// faultHeader marks a reply whose body is a fault.Error. It is the header that
// NATS micro itself sets on error replies, so that other people's tools see it.
const faultHeader = micro.ErrorCodeHeader

// Service is a process's set of command endpoints, discoverable and counted by
// NATS micro ($SRV.INFO, $SRV.STATS).
type Service struct {
	conn   *Conn
	svc    micro.Service
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards stopped against wg: nothing is added after Stop
	stopped bool
	wg      sync.WaitGroup
}

// Serve starts a service without endpoints; Handle adds them. Handlers run with
// a context that ends with Stop.
func (c *Conn) Serve(s subject.Service, version string) (*Service, error) {
	c.serves.Store(true)
	svc, err := micro.AddService(c.NC, micro.Config{Name: string(s), Version: semver(version)})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", s, err)
	}
	if err := c.settle("$SRV."); err != nil {
		_ = svc.Stop()
		return nil, fmt.Errorf("serve %s: %w", s, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Service{conn: c, svc: svc, ctx: ctx, cancel: cancel}, nil
}

// semver is the version as micro demands it; what is none becomes 0.0.0.
func semver(v string) string {
	var a, b, c int
	if n, _ := fmt.Sscanf(v, "%d.%d.%d", &a, &b, &c); n == 3 {
		return fmt.Sprintf("%d.%d.%d", a, b, c)
	}
	return "0.0.0"
}

// Stop takes no more commands, cancels the handlers' context and waits for
// them. A command that arrives meanwhile is answered Unavailable.
func (s *Service) Stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	_ = s.svc.Stop()
	s.cancel()
	s.wg.Wait()
}

// start runs f in a goroutine that Stop waits for, or reports false.
func (s *Service) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.wg.Go(f)
	return true
}

// Handle serves a command. Every call runs in a goroutine of its own, since
// micro would run them one at a time; an unknown field in the request is
// refused, so that a misspelt option never passes silently. An empty request
// is one without fields. When Handle returns, the command can be called.
func Handle[Req, Rep any](s *Service, spec command.Spec[Req, Rep], connection string, h func(context.Context, Req) (Rep, error)) error {
	subj, err := subjectOf(spec, connection)
	if err != nil {
		return err
	}
	serve := func(r micro.Request) {
		req, err := decode[Req](r.Data())
		if err != nil {
			respondFault(r, fault.New(fault.InvalidArgument, "", "%s: %v", spec.Verb, err))
			return
		}
		rep, err := h(s.ctx, req)
		if err != nil {
			respondFault(r, fault.From(err))
			return
		}
		if err := r.RespondJSON(rep); err != nil {
			// It cannot be written or is too large; if the bus is lost, this
			// goes nowhere either.
			respondFault(r, fault.New(fault.Internal, "", "%s: answer: %v", spec.Verb, err))
		}
	}
	err = s.svc.AddEndpoint(spec.Verb, micro.HandlerFunc(func(r micro.Request) {
		if !s.start(func() { serve(r) }) {
			respondFault(r, fault.New(fault.Unavailable, "", "%s is stopping", spec.Service))
		}
	}), micro.WithEndpointSubject(subj), micro.WithEndpointQueueGroupDisabled())
	if err == nil {
		err = s.conn.settle(subj)
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", subj, err)
	}
	return nil
}

// decode reads a request strictly.
func decode[Req any](data []byte) (Req, error) {
	var req Req
	if len(data) == 0 {
		return req, nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return req, errors.New("more than one JSON value")
	}
	return req, nil
}

// respondFault answers with f. micro refuses to send an error without a
// description, and the caller would wait in vain.
func respondFault(r micro.Request, f *fault.Error) {
	if f.Code == "" || f.Message == "" {
		c := *f
		if c.Code == "" {
			c.Code = fault.Internal
		}
		if c.Message == "" {
			c.Message = string(c.Code)
		}
		f = &c
	}
	body, _ := json.Marshal(f) // four strings
	_ = r.Error(string(f.Code), f.Message, body)
}
