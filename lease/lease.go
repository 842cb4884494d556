// Package lease is the contract between a connector and the manager that is
// kept in the cluster as objects.
//
// A connection and an engagement are each one coordination.k8s.io/v1 Lease.
// The API server thereby authenticates and authorises who may connect and who
// may engage what; nobody's memory is the only place where an engagement
// exists, so a manager restart loses nothing; and `kubectl get leases` shows
// who holds what. The connector creates and renews them, the manager reconciles
// the cluster to them, and removes those that were not renewed in time.
//
//   - A connection's Lease lives in the manager's namespace. It carries the pins
//     (public keys) with which its processes may open tunnels.
//   - An engagement's Lease lives in the namespace of the workload, so that the
//     namespace's own RBAC decides. A replace's name follows from the workload
//     and the container, so that the second one of the same container fails with
//     AlreadyExists, atomically. Ingests and intercepts, of which a workload may
//     have several, are named by their id too; which of two intercepts has a
//     port is the manager's to say: the older one.
//
// The spec of either is JSON in an annotation, written once by the connector;
// the status is JSON in another, written by the manager only.
package lease

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Group prefixes every label and annotation of Berth.
const Group = "berth.dev"

// Labels and annotations.
const (
	LabelKind       = Group + "/kind"       // KindConnection or KindEngagement
	LabelConnection = Group + "/connection" // id of the connection
	LabelEngagement = Group + "/engagement" // id of the engagement; on pods too
	LabelReleased   = Group + "/released"   // on a pod that was taken out of its ReplicaSet to bridge a swap
	AnnotationSpec  = Group + "/spec"       // JSON of ConnectionSpec or EngagementSpec
	AnnotationState = Group + "/status"     // JSON of EngagementStatus

	KindConnection = "connection"
	KindEngagement = "engagement"
)

// Default times. A holder renews every RenewEvery; who has not seen a renewal
// for Duration (by its own clock, since it first saw the last one) takes the
// lease for abandoned.
const (
	Duration   = 20 * time.Second
	RenewEvery = 5 * time.Second
)

// DefaultNamespace is where the cluster side is installed by default.
const DefaultNamespace = "berth"

// ManagerPort is the port of the manager's tunnel endpoint (HTTP, upgraded).
const ManagerPort = 8080

// ManagerSelector selects the manager's pods in its namespace.
const ManagerSelector = "app.kubernetes.io/name=berth-manager"

// InfoConfigMap is the ConfigMap in the manager's namespace in which the
// manager publishes Info under the key InfoKey. Reading it through the API
// server is how a client learns the pin that it then demands of the manager.
const (
	InfoConfigMap = "berth-manager-info"
	InfoKey       = "info.json"
)

// Info is what the manager publishes of itself.
type Info struct {
	Version        string `json:"version"`
	InstallationID string `json:"installationID"` // UID of the manager's namespace
	Pin            string `json:"pin"`            // tunnel.Pin of the manager's key
	// Direct are the addresses (host:port) at which the manager may be reached
	// without the API server: of nodes, or of a load balancer. Whether they are
	// reachable from anywhere else nobody knows: to be tried, and no more.
	Direct []string `json:"direct,omitempty"`
	// Webhook is the outcome of the manager's last self-test of its admission
	// webhook: "ok", or what failed.
	Webhook string `json:"webhook"`
	// Filters: the manager knows EngagementSpec.Filter, and wiretaps; CopyFilters:
	// it knows wiretaps with a filter.
	Filters     bool `json:"filters,omitempty"`
	CopyFilters bool `json:"copyFilters,omitempty"`
	// ExcludeEnv are the variables (patterns of path.Match) that this
	// installation keeps in the cluster.
	ExcludeEnv []string `json:"excludeEnv,omitempty"`
}

// ConnectionSpec is the annotation of a connection's Lease.
type ConnectionSpec struct {
	Name      string   `json:"name"`      // the user's name for it
	Namespace string   `json:"namespace"` // connected namespace
	Client    string   `json:"client"`    // user@host, for people
	Version   string   `json:"version"`   // of the connector
	Pins      []string `json:"pins"`      // keys that may open tunnels: vif's and the connector's
}

// Kind of an engagement.
type Kind string

// The kinds of engagements.
const (
	Replace   Kind = "replace"
	Intercept Kind = "intercept"
	Ingest    Kind = "ingest"
	Wiretap   Kind = "wiretap"
)

// Diverts reports whether agents take traffic of ports for it.
func (k Kind) Diverts() bool { return k == Intercept || k == Wiretap }

// ReadOnly reports whether it may only read the container's volumes, since it
// disturbs nobody and may be had any number of times.
func (k Kind) ReadOnly() bool { return k == Ingest || k == Wiretap }

// EngagementSpec is the annotation of an engagement's Lease.
type EngagementSpec struct {
	ID           string `json:"id"`
	Connection   string `json:"connection"` // id
	Client       string `json:"client"`
	Kind         Kind   `json:"kind"`
	WorkloadKind string `json:"workloadKind"` // Deployment, StatefulSet or ReplicaSet
	Workload     string `json:"workload"`
	Container    string `json:"container"`
	// Ports are the container ports whose traffic goes to the handler. Empty
	// for replace means every port that the container declares; an ingest has
	// none.
	Ports []Port `json:"ports,omitempty"`
	// ToPod are ports of the pod that the handler reaches at its own loopback address.
	ToPod []Port `json:"toPod,omitempty"`
	// Filter says which requests of Ports come to the handler; the zero one: all.
	// It is here in the clear, values of headers too: agents need them.
	Filter Filter `json:"filter,omitzero"`
	// TokenHash is TokenHash of the secret with which the container's volumes
	// are used; empty: nobody uses them. The secret itself never is in the
	// cluster.
	TokenHash string `json:"tokenHash,omitempty"`
}

// TokenHash is the SHA-256 of a token, in hexadecimal digits. A token is random
// and long, so that its hash may be read by anybody.
func TokenHash(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

// Reaches reports whether the handler may reach a port of the pod.
func (s EngagementSpec) Reaches(port uint16, protocol string) bool {
	for _, p := range s.ToPod {
		if p.Container == port && p.Protocol == protocol {
			return true
		}
	}
	return false
}

// LeaseName is the name of the engagement's Lease.
func (s EngagementSpec) LeaseName() string {
	n := EngagementName(s.WorkloadKind, s.Workload, s.Container)
	if s.Beside() {
		n = shorten(n+"-"+s.ID, n)
	}
	return n
}

// Beside reports whether the engagement leaves the container running, with an
// agent beside it, rather than putting one in its place.
func (s EngagementSpec) Beside() bool { return s.Kind == Ingest || s.Kind.Diverts() }

// Splits reports whether it shares a port with the app and others, which takes an
// agent that knows how (AgentID.Filters).
func (s EngagementSpec) Splits() bool { return s.Filter.Filtered() || s.Kind == Wiretap }

// SplitBy reports whether one that knows filters, and those of copies, can serve it.
func (s EngagementSpec) SplitBy(filters, copyFilters bool) bool {
	if s.Kind == Wiretap && s.Filter.Filtered() {
		return filters && copyFilters
	}
	return filters || !s.Splits()
}

// Port is a container port and, where it differs, the port the handler listens on.
type Port struct {
	Container uint16 `json:"container"`
	Handler   uint16 `json:"handler,omitempty"` // 0: the same
	Protocol  string `json:"protocol"`          // TCP or UDP
	Name      string `json:"name,omitempty"`
}

// Phase of an engagement, as the manager sees it.
type Phase string

// The phases. Ended engagements have no Lease, hence no phase.
const (
	Pending   Phase = "pending"   // seen, pods not yet there
	Prepared  Phase = "prepared"  // an agent stands in every pod; traffic not yet diverted
	Active    Phase = "active"    // the handler runs, agents are Ready, traffic goes to it
	Restoring Phase = "restoring" // being undone
	Failed    Phase = "failed"    // see Error; the connector is to delete the Lease
)

// EngagementStatus is the annotation that the manager writes.
type EngagementStatus struct {
	Phase Phase       `json:"phase"`
	Ports []Port      `json:"ports,omitempty"`
	Pods  []PodStatus `json:"pods,omitempty"`
	Error string      `json:"error,omitempty"`
	Hint  string      `json:"hint,omitempty"`
	// Method is how agents came into the pods: ephemeral (beside the container,
	// nothing restarted), or surge or recreate, how the pods were swapped.
	Method string `json:"method,omitempty"`
	// Why says why it is not ephemeral where it could have been.
	Why string `json:"why,omitempty"`
	// Lost is of how many connections a wiretap's handler has not had all copies.
	Lost int64 `json:"lost,omitempty"`
	// NotHTTP are the container ports of an engagement with a filter to which
	// something has come that is not HTTP.
	NotHTTP []uint16 `json:"notHTTP,omitempty"`
	// Named: the traffic is not diverted in the pod, but comes to the agent
	// because the port's name was given to it.
	Named bool `json:"named,omitempty"`
}

// Sidecar reports whether agents beside the container came with new pods.
func (s EngagementStatus) Sidecar() bool { return s.Method != "" && s.Method != Ephemeral }

// Ephemeral is the Method by which nothing is restarted.
const Ephemeral = "ephemeral"

// PodStatus is one pod of an engaged workload.
type PodStatus struct {
	Name  string `json:"name"`
	IP    string `json:"ip,omitempty"`
	Agent bool   `json:"agent"` // its agent has arrived at the manager
	Ready bool   `json:"ready"`
}

// AnnotationHandler on an engagement's Lease is written by the connector: "run"
// once the handler runs. Until then agents stay unready, so that the workload's
// old pods go on answering.
const (
	AnnotationHandler = Group + "/handler"
	HandlerRun        = "run"
)

// AnnotationRelease on an engagement's Lease asks the manager to restore the
// workload and then to delete the Lease, so that "the Lease is gone" means
// "restored". (A finalizer would promise the same, but would leave a namespace
// that cannot be deleted where the manager is gone.) A Lease that is deleted by
// hand or that was not renewed in time is restored likewise.
const AnnotationRelease = Group + "/release"

// EngagementName is the name of the Lease that engages the container of a
// workload exclusively. The dot, which no container's name has, keeps container b-c
// of workload a apart from container c of workload a-b. Long names are shortened
// with a hash, since an object's name has at most 253 characters and a label value 63.
func EngagementName(workloadKind, workload, container string) string {
	n := strings.ToLower(fmt.Sprintf("berth-%s-%s.%s", workloadKind, workload, container))
	return shorten(n, n)
}

// shorten cuts name to 63 characters with a hash of the whole; what is kept
// begins as prefix does.
func shorten(name, prefix string) string {
	if len(name) <= 63 {
		return name
	}
	h := sha256.Sum256([]byte(name))
	return strings.TrimRight(prefix[:min(len(prefix), 54)], "-.") + "-" + hex.EncodeToString(h[:4])
}

// ConnectionName is the name of a connection's Lease.
func ConnectionName(id string) string { return "berth-connection-" + id }

// Marshal is the JSON of v for an annotation; v is one of this package's types,
// none of which can fail to marshal.
func Marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Unmarshal reads an annotation.
func Unmarshal[T any](s string) (T, error) {
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return v, fmt.Errorf("parse annotation: %w", err)
	}
	return v, nil
}

// Methods of the manager that are called over a tunnel session (tunnel.Call).
const (
	MethodEnvironment = "engagement.environment" // EnvironmentRequest -> Environment, manager asks an agent
	// MethodPing proves that the manager answers: {} -> {}. A refusal ("no such
	// method", of an older manager) proves it as well.
	MethodPing     = "manager.ping"
	MethodAgentEnv = "agent.environment" // the same from manager to agent
	// MethodFigures asks the manager what it and the agents of the caller's
	// engagements hold, and an agent what it holds: {} -> []Figures.
	MethodFigures  = "figures"
	MethodAgentRun = "agent.run" // AgentRun -> AgentRun, manager tells an agent in a container's place
	// MethodAgentServe is how the manager tells an agent beside a container all
	// that it is to do: AgentServe -> AgentServed.
	MethodAgentServe = "agent.serve"
	// MethodAgentLost asks an agent beside a container what engagements have not had: {} -> AgentLost.
	MethodAgentLost = "agent.lost"
)

// AgentServe is the whole of what an agent beside a container serves; what is
// not in it ends at once.
type AgentServe struct {
	Engagements []Served `json:"engagements,omitempty"`
	// Node are addresses of the pod's node, from which kubelet probes.
	Node []string `json:"node,omitempty"`
	// Exit: the agent is not needed any more.
	Exit bool `json:"exit,omitempty"`
}

// AgentLost says what engagements, by which it is, have not had of an agent since
// they began there.
type AgentLost struct {
	// Connections, or requests where there is a filter, of which a wiretap's copies
	// were dropped.
	Connections map[string]int64 `json:"connections,omitempty"`
	// NotHTTP are the ports of engagements with a filter to which something has come
	// that is not HTTP.
	NotHTTP map[string][]uint16 `json:"notHTTP,omitempty"`
}

// Served is one engagement that an agent serves.
type Served struct {
	ID string `json:"id"`
	// Divert are the ports whose traffic is to go to the handler now.
	Divert []Diverted `json:"divert,omitempty"`
}

// Diverted is a port of the pod whose traffic goes to the handler.
type Diverted struct {
	Port     uint16 `json:"port"`     // in the pod
	Protocol string `json:"protocol"` // TCP or UDP
	As       uint16 `json:"as"`       // the engagement's container port, where pods differ
	// Filter says which requests go there; the rest is another engagement's, or
	// the app's.
	Filter Filter `json:"filter,omitzero"`
	// Copy: only copies of what clients say go there; the traffic goes its way.
	Copy bool `json:"copy,omitempty"`
	// Probes are kubelet's, of this port: they are passed on to the app.
	Probes []Probe `json:"probes,omitempty"`
}

// Probe is how kubelet asks a port whether the app is well.
type Probe struct {
	Kind      string `json:"kind"`                // http, tcp, or opaque for what cannot be told from other traffic (TLS, gRPC)
	Path      string `json:"path,omitempty"`      // of an http probe, with its query
	UserAgent string `json:"userAgent,omitempty"` // of an http probe that does not have kubelet's
}

// Kinds of probes.
const (
	ProbeHTTP   = "http"
	ProbeTCP    = "tcp"
	ProbeOpaque = "opaque"
)

// AgentServed is the answer: what holds now.
type AgentServed struct {
	// Errors are by engagement: why its ports are not diverted.
	Errors map[string]string `json:"errors,omitempty"`
}

// Roles in which agents come to the manager.
const (
	RoleAgent  = "agent"        // in a container's place; ID is the engagement's
	RoleBeside = "agent-beside" // beside a container; ID is the JSON of an AgentID
)

// AgentRun tells an agent in a container's place where what comes to its ports
// goes: to the handler if it runs, else to the app in pods that are still there,
// else nowhere. The agent is Ready while there is such a place. Its answer says
// what holds now, of App those that it reaches.
type AgentRun struct {
	Run bool `json:"run"`
	// App are addresses of pods with the app, as long as the handler does not run.
	App []string `json:"app,omitempty"`
}

// AgentID is the ID that an agent beside a container gives in its hello.
type AgentID struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Name      string `json:"name"`             // of the agent's own container
	Container string `json:"container"`        // beside which it is
	Divert    bool   `json:"divert,omitempty"` // it may divert traffic
	// Filters: it is of a version that knows filters and copies. One that does not
	// would take all of a port for the first engagement's. CopyFilters: also filters of
	// copies. One that does not would copy all.
	Filters     bool `json:"filters,omitempty"`
	CopyFilters bool `json:"copyFilters,omitempty"`
}

// AgentAudience is the audience of the projected service-account token with
// which an agent proves to the manager in which pod it runs.
const AgentAudience = "berth-manager"

// Annotations that the manager puts on pods, so that whoever finds one of them
// knows what it belongs to and how it was.
const (
	AnnotationWorkload = Group + "/workload"        // kind/name
	AnnotationLabels   = Group + "/original-labels" // JSON of the labels before the pod was released
)

// EnvironmentRequest asks for the environment of the engaged container.
type EnvironmentRequest struct {
	Engagement string `json:"engagement"`
}

// Environment is what the engaged container would have: never logged, never a
// fact, never in an object.
type Environment struct {
	Env [][]byte `json:"env"` // KEY=value, sorted by key; values may hold any bytes but NUL
	// Mounts are the paths of the container's volumes.
	Mounts []string `json:"mounts"`
	// Volumes are the same with what the agent finds there.
	Volumes []Volume `json:"volumes,omitempty"`
}

// Volume is a mount of the engaged container.
type Volume struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"` // mounted so by Kubernetes
	File     bool   `json:"file,omitempty"`     // it is a single file (subPath) and no directory
}

// FilesAccess is what the manager tells an agent of a stream to its file server
// (tunnel.KindFiles), as JSON in the header's Method: so the agent needs no state
// of its own about engagements, and nothing has to arrive there first.
type FilesAccess struct {
	TokenHash string `json:"tokenHash"`          // of the only token to accept
	ReadOnly  bool   `json:"readOnly,omitempty"` // the engagement may not write
}
