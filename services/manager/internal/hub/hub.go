// Package hub knows which sessions are up: of clients, by connection, and of
// agents: those in a container's place by engagement and pod, those beside a
// container by pod. It keeps nothing else and survives nothing: after a restart
// clients and agents dial again.
//
// An agent beside a container outlives engagements and serves several: which
// ones is said by Assign, after which Agents finds it under each of them.
//
// Newest wins: a connection's traffic goes to the vif session that came last,
// and an agent's second session closes its first. All methods may be called
// concurrently; the callback runs without locks held.
package hub

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
)

// ErrGone is why a session was closed whose lease has ended.
var ErrGone = errors.New("the connection's lease has ended")

var errReplaced = errors.New("replaced by a newer session of the same pod")

// Roles of sessions.
const (
	RoleVIF       = "vif"
	RoleConnector = "connector"
	RoleAgent     = lease.RoleAgent
	RoleBeside    = lease.RoleBeside
)

// Hub is the set of live sessions.
type Hub struct {
	changed func(Change)

	mu      sync.Mutex
	clients map[string][]client          // by connection, oldest first
	lastVIF map[string]time.Time         // when a connection's last vif session went
	agents  map[string]map[string]*Agent // in the place of a container: by engagement, by pod UID
	beside  map[string]*Agent            // beside a container: by pod UID and own name
	files   map[string]string            // by engagement, UID of the pod whose volumes are used
}

// Change is what has come or gone; one of the fields is set.
type Change struct {
	Connection string
	Engagement string
	Namespace  string // of a pod that has an agent beside a container
}

type client struct {
	role string
	s    *tunnel.Session
}

// Agent is the session of one pod's agent.
type Agent struct {
	Session *tunnel.Session
	Pod     string // name
	UID     string

	// Of an agent beside a container.
	Namespace   string
	Name        string // its own container
	Container   string // beside which it is
	Divert      bool   // it may divert traffic
	Filters     bool   // and knows filters
	CopyFilters bool   // and those of copies
	Sidecar     bool   // it came with the pod

	mu       sync.Mutex
	told     *lease.AgentRun   // what the agent has confirmed to have been told by agent.run
	serve    *lease.AgentServe // and by agent.serve
	served   lease.AgentServed // its answer
	idle     time.Time         // since when it serves nothing
	assigned map[string]string // engagements that it serves, with their connections
}

// Serves returns what the agent was told to serve last, and its answer; nil if
// nothing yet.
func (a *Agent) Serves() (*lease.AgentServe, lease.AgentServed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.serve, a.served
}

// SetServes remembers what the agent has confirmed.
func (a *Agent) SetServes(q *lease.AgentServe, served lease.AgentServed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serve, a.served = q, served
}

// Engagements are those that an agent beside a container serves.
func (a *Agent) Engagements() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.assigned))
}

// Assign says which engagements an agent beside a container serves, with their
// connections. Flows of others are not taken from it, and it is not asked for them.
func (a *Agent) Assign(engagements map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case len(engagements) > 0:
		a.idle = time.Time{}
	case a.idle.IsZero():
		a.idle = time.Now()
	}
	a.assigned = engagements
}

// AlsoAssign adds to what Assign has said.
func (a *Agent) AlsoAssign(engagements map[string]string) {
	a.mu.Lock()
	all := maps.Clone(a.assigned)
	a.mu.Unlock()
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, engagements)
	a.Assign(all)
}

// Connection is that of an engagement which the agent serves.
func (a *Agent) Connection(engagement string) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.assigned[engagement]
	return c, ok
}

// Idle is for how long the agent has had nothing to serve.
func (a *Agent) Idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.idle.IsZero() {
		return 0
	}
	return time.Since(a.idle)
}

// Told reports what the agent has confirmed last, if anything.
func (a *Agent) Told() (q lease.AgentRun, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told == nil {
		return q, false
	}
	return *a.told, true
}

// SetTold remembers what the agent has confirmed.
func (a *Agent) SetTold(q lease.AgentRun) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = &q
}

// New returns an empty hub that calls changed after each arrival and loss.
func New(changed func(Change)) *Hub {
	return &Hub{changed: changed, clients: map[string][]client{}, lastVIF: map[string]time.Time{}, agents: map[string]map[string]*Agent{}, beside: map[string]*Agent{}, files: map[string]string{}}
}

// AddClient registers a client's session; the returned function removes it.
func (h *Hub) AddClient(connection, role string, s *tunnel.Session) (remove func()) {
	h.mu.Lock()
	h.clients[connection] = append(h.clients[connection], client{role, s})
	h.mu.Unlock()
	h.changed(Change{Connection: connection})
	return func() {
		h.mu.Lock()
		var rest []client
		for _, c := range h.clients[connection] {
			if c.s != s {
				rest = append(rest, c)
			}
		}
		if h.clients[connection] = rest; len(rest) == 0 {
			delete(h.clients, connection)
		}
		if role == RoleVIF {
			h.lastVIF[connection] = time.Now()
		}
		h.mu.Unlock()
		h.changed(Change{Connection: connection})
	}
}

// VIF is the newest vif session of a connection, nil if there is none.
func (h *Hub) VIF(connection string) *tunnel.Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.clients[connection]) - 1; i >= 0; i-- {
		if c := h.clients[connection][i]; c.role == RoleVIF {
			return c.s
		}
	}
	return nil
}

// VIFAway is for how long a connection has had no vif session: 0 if it has one.
// ok is false if it never had one since this process began.
func (h *Hub) VIFAway(connection string) (away time.Duration, ok bool) {
	if h.VIF(connection) != nil {
		return 0, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.lastVIF[connection]
	return time.Since(at), ok
}

// Cut closes all sessions of a connection.
func (h *Hub) Cut(connection string) {
	h.mu.Lock()
	cs := h.clients[connection]
	delete(h.lastVIF, connection)
	h.mu.Unlock()
	for _, c := range cs {
		_ = c.s.CloseWithError(ErrGone)
	}
}

// Connections are those with at least one session.
func (h *Hub) Connections() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id := range h.clients {
		ids = append(ids, id)
	}
	return ids
}

// AddAgent registers an agent's session in the place of an older one of the
// same pod; the returned function removes it.
func (h *Hub) AddAgent(engagement string, a *Agent) (remove func()) {
	h.mu.Lock()
	pods := h.agents[engagement]
	if pods == nil {
		pods = map[string]*Agent{}
		h.agents[engagement] = pods
	}
	old := pods[a.UID]
	pods[a.UID] = a
	h.mu.Unlock()
	if old != nil {
		_ = old.Session.CloseWithError(errReplaced)
	}
	h.changed(Change{Engagement: engagement})
	return func() {
		h.mu.Lock()
		if h.agents[engagement][a.UID] == a {
			delete(h.agents[engagement], a.UID)
			if len(h.agents[engagement]) == 0 {
				delete(h.agents, engagement)
				delete(h.files, engagement)
			}
		}
		h.mu.Unlock()
		h.changed(Change{Engagement: engagement})
	}
}

// FilesAgent is the agent whose volumes an engagement uses: the same for as long
// as it is there, since only its file server knows what is open, and the volumes
// of another pod may be others. Else that of the pod whose name comes first
// (ordinal 0 of a StatefulSet). Nil if there is none.
func (h *Hub) FilesAgent(engagement string) *Agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.agentsOf(engagement)
	if a := all[h.files[engagement]]; a != nil {
		return a
	}
	var first *Agent
	for _, a := range all {
		if first == nil || a.Pod < first.Pod {
			first = a
		}
	}
	if first != nil {
		h.files[engagement] = first.UID
	}
	return first
}

// AddBeside registers the session of an agent beside a container in the place
// of an older one of the same agent; the returned function removes it.
func (h *Hub) AddBeside(a *Agent) (remove func()) {
	a.Assign(nil)
	key := a.UID + "/" + a.Name
	h.mu.Lock()
	old := h.beside[key]
	h.beside[key] = a
	h.mu.Unlock()
	if old != nil {
		_ = old.Session.CloseWithError(errReplaced)
	}
	h.changed(Change{Namespace: a.Namespace})
	return func() {
		h.mu.Lock()
		if h.beside[key] == a {
			delete(h.beside, key)
		}
		h.mu.Unlock()
		h.changed(Change{Namespace: a.Namespace})
	}
}

// Beside are the agents beside containers, by pod UID; of one pod by name.
func (h *Hub) Beside() map[string][]*Agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := map[string][]*Agent{}
	for _, a := range h.beside {
		m[a.UID] = append(m[a.UID], a)
	}
	for _, as := range m {
		slices.SortFunc(as, func(a, b *Agent) int { return strings.Compare(a.Name, b.Name) })
	}
	return m
}

// Forget drops what is remembered of an engagement that is over.
func (h *Hub) Forget(engagement string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.files, engagement)
}

// Agents are the agents of an engagement, by pod UID.
func (h *Hub) Agents(engagement string) map[string]*Agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.agentsOf(engagement)
}

// Engagements are those that have an agent.
func (h *Hub) Engagements() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := slices.Collect(maps.Keys(h.agents))
	for _, a := range h.beside {
		ids = append(ids, a.Engagements()...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (h *Hub) agentsOf(engagement string) map[string]*Agent {
	m := make(map[string]*Agent, len(h.agents[engagement]))
	for k, v := range h.agents[engagement] {
		m[k] = v
	}
	for _, a := range h.beside {
		if _, ok := a.Connection(engagement); ok {
			m[a.UID] = a
		}
	}
	return m
}
