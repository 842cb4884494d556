package divert_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/beside"
	"berth.dev/services/agent/internal/divert"
	"berth.dev/tunnel"
)

// manager is the far end of the agent's session: it refuses flows of an
// engagement that it has ended, as the real one does.
type manager struct {
	mu      sync.Mutex
	engaged bool
}

func (m *manager) set(engaged bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.engaged = engaged
}

func (m *manager) serve(s *tunnel.Session) {
	for {
		r, err := s.Accept(context.Background())
		if err != nil {
			return
		}
		m.mu.Lock()
		engaged := m.engaged
		m.mu.Unlock()
		if !engaged {
			r.Refuse(tunnel.CodeDenied, "no such engagement")
			continue
		}
		if st, err := r.Accept(); err == nil {
			go func() {
				defer st.Close()
				buf := make([]byte, 100)
				for {
					if _, err := st.Read(buf); err != nil {
						return
					}
					_, _ = io.WriteString(st, "handler")
				}
			}()
		}
	}
}

// Nothing is lost when the traffic of a port goes to the handler and back, again
// and again, under load.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	app(t, "app", "8080")
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	defer near.Close()
	defer far.Close()
	m := &manager{}
	go m.serve(far)
	agent := beside.New(near, divert.New("berth-hammer"), slog.New(slog.DiscardHandler))
	defer agent.Close()
	for deadline := time.Now().Add(5 * time.Second); w.say("tcp 10.99.0.1:8080") != "app" && time.Now().Before(deadline); {
	}
	if got := w.say("hammer 10.99.0.1:8080"); got != "hammering" {
		t.Fatal(got)
	}
	for range 6 {
		m.set(true)
		for _, probes := range [][]lease.Probe{nil, {{Kind: lease.ProbeHTTP, Path: "/"}}} {
			q := lease.AgentServe{Engagements: []lease.Served{{ID: "e", Divert: []lease.Diverted{{Port: 8080, Protocol: "TCP", As: 8080, Probes: probes}}}}}
			if got := agent.Apply(q); got.Errors != nil {
				t.Fatal(got.Errors)
			}
			time.Sleep(20 * time.Millisecond) // the load goes on
		}
		agent.Apply(lease.AgentServe{})
		m.set(false)
		time.Sleep(20 * time.Millisecond)
	}
	got := w.say("stop")
	t.Log(got)
	if strings.Contains(got, "lost") || !strings.Contains(got, "app:") || !strings.Contains(got, "handler:") {
		t.Error(fmt.Sprint("requests: ", got))
	}
}
