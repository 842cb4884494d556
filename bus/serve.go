package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
	svc    micro.Service
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Serve starts a service without endpoints; Handle adds them. Handlers run with
// a context that ends with Stop.
func (c *Conn) Serve(s subject.Service, version string) (*Service, error) {
	svc, err := micro.AddService(c.NC, micro.Config{Name: string(s), Version: semver(version)})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", s, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Service{svc: svc, ctx: ctx, cancel: cancel}, nil
}

// semver is the version as micro demands it; what is none becomes 0.0.0.
func semver(v string) string {
	var a, b, c int
	if n, _ := fmt.Sscanf(v, "%d.%d.%d", &a, &b, &c); n == 3 {
		return fmt.Sprintf("%d.%d.%d", a, b, c)
	}
	return "0.0.0"
}

// Stop takes no more commands, cancels the handlers' context and waits for them.
func (s *Service) Stop() {
	_ = s.svc.Stop()
	s.cancel()
	s.wg.Wait()
}

// Handle serves a command. Every call runs in a goroutine of its own, since
// micro would run them one at a time; an unknown field in the request is
// refused, so that a misspelt option never passes silently.
func Handle[Req, Rep any](s *Service, spec command.Spec[Req, Rep], connection string, h func(context.Context, Req) (Rep, error)) error {
	subj := subjectOf(spec, connection)
	err := s.svc.AddEndpoint(spec.Verb, micro.HandlerFunc(func(r micro.Request) {
		s.wg.Go(func() {
			var req Req
			dec := json.NewDecoder(bytes.NewReader(r.Data()))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&req); err != nil {
				respondFault(r, fault.New(fault.InvalidArgument, "", "%s: %v", spec.Verb, err))
				return
			}
			rep, err := h(s.ctx, req)
			if err != nil {
				respondFault(r, fault.From(err))
				return
			}
			_ = r.RespondJSON(rep) // fails only when the bus is lost, which Lost tells
		})
	}), micro.WithEndpointSubject(subj), micro.WithEndpointQueueGroupDisabled())
	if err != nil {
		return fmt.Errorf("serve %s: %w", subj, err)
	}
	return nil
}

func respondFault(r micro.Request, f *fault.Error) {
	body, _ := json.Marshal(f)
	_ = r.Error(string(f.Code), f.Message, body)
}
