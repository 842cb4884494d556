// Package command defines what may be asked of a service: the request-reply
// half of the bus, and Berth's public API beside the facts.
//
// A reply means accepted or refused, and comes fast; what becomes of an
// accepted command is told by facts. The caller mints the id of what it asks
// for, subscribes to its facts, and then sends the command: no fact is missed,
// and sending the same command again is harmless.
package command

import (
	"encoding/json"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// Spec ties a command's subject to the types of its request and reply.
type Spec[Req, Rep any] struct {
	Service subject.Service
	Verb    string
	// PerConnection: the service has one instance for each connection, and the
	// subject carries the connection's id.
	PerConnection bool
}

// Accepted is the reply of a command that has no other.
type Accepted struct {
	ID string `json:"id,omitempty"`
	// Already is set where what was asked for had been there before.
	Already bool `json:"already,omitempty"`
}

// None is an empty request.
type None struct{}

// The commands.
var (
	// ---- connector: the public API ----
	ConnectionOpen   = Spec[OpenConnection, Accepted]{Service: subject.Connector, Verb: "connection-open"}
	ConnectionClose  = Spec[CloseConnection, Accepted]{Service: subject.Connector, Verb: "connection-close"}
	EngagementOpen   = Spec[OpenEngagement, Accepted]{Service: subject.Connector, Verb: "engagement-open"}
	EngagementClose  = Spec[CloseEngagement, Accepted]{Service: subject.Connector, Verb: "engagement-close"}
	StateGet         = Spec[None, State]{Service: subject.Connector, Verb: "state-get"}
	EngagementSwitch = Spec[SwitchHandler, Accepted]{Service: subject.Connector, Verb: "engagement-switch"}
	// EngagementEnvironment is how values of the environment reach who holds the
	// engagement: in the reply, and nowhere else.
	EngagementEnvironment = Spec[EngagementRef, Environment]{Service: subject.Connector, Verb: "engagement-environment"}
	WorkloadsList         = Spec[ListWorkloads, Workloads]{Service: subject.Connector, Verb: "workloads-list"}
	Install               = Spec[InstallCluster, Accepted]{Service: subject.Connector, Verb: "install"}
	Uninstall             = Spec[InstallCluster, Accepted]{Service: subject.Connector, Verb: "uninstall"}

	// ---- runner ----
	NetworkJoin     = Spec[JoinNetwork, Accepted]{Service: subject.Runner, Verb: "network-join"}
	DaemonStart     = Spec[StartDaemon, Accepted]{Service: subject.Runner, Verb: "daemon-start"}
	DaemonStop      = Spec[StopDaemon, Accepted]{Service: subject.Runner, Verb: "daemon-stop"}
	HandlerCheck    = Spec[CheckHandler, CheckedHandler]{Service: subject.Runner, Verb: "handler-check"}
	HandlerCreate   = Spec[CreateHandler, Accepted]{Service: subject.Runner, Verb: "handler-create"}
	HandlerStart    = Spec[EngagementRef, Accepted]{Service: subject.Runner, Verb: "handler-start"}
	HandlerHealth   = Spec[EngagementRef, Health]{Service: subject.Runner, Verb: "handler-health"}
	HandlerStop     = Spec[EngagementRef, Accepted]{Service: subject.Runner, Verb: "handler-stop"}
	VolumesEnsure   = Spec[None, VolumePlugin]{Service: subject.Runner, Verb: "volumes-ensure"}
	ContainerCreate = Spec[CreateContainer, CreatedContainer]{Service: subject.Runner, Verb: "container-create"}

	// ---- builder ----
	BuildStart  = Spec[StartBuild, StartedBuild]{Service: subject.Builder, Verb: "build-start"}
	BuildCancel = Spec[BuildRef, Accepted]{Service: subject.Builder, Verb: "build-cancel"}

	// ---- vif ----
	TunnelOpen   = Spec[OpenTunnel, Accepted]{Service: subject.VIF, Verb: "tunnel-open", PerConnection: true}
	Credentials  = Spec[Access, Accepted]{Service: subject.VIF, Verb: "credentials", PerConnection: true}
	VIFState     = Spec[None, VIFStatus]{Service: subject.VIF, Verb: "state", PerConnection: true}
	VIFFigures   = Spec[None, Figures]{Service: subject.VIF, Verb: "figures", PerConnection: true}
	Engage       = Spec[EngageHandler, Accepted]{Service: subject.VIF, Verb: "engage", PerConnection: true}
	Listening    = Spec[AskListening, ListeningPorts]{Service: subject.VIF, Verb: "listening", PerConnection: true}
	EngagePause  = Spec[PauseEngagement, PausedEngagement]{Service: subject.VIF, Verb: "engage-pause", PerConnection: true}
	EngageResume = Spec[EngagementRef, Accepted]{Service: subject.VIF, Verb: "engage-resume", PerConnection: true}
	Disengage    = Spec[EngagementRef, Accepted]{Service: subject.VIF, Verb: "disengage", PerConnection: true}
)

// OpenConnection asks for a connection. Kubeconfig is the JSON of a kubeconfig
// merged, minified to Context and with certificates inlined, whose server is
// reachable from a container on Networks. It rides in the request only.
type OpenConnection struct {
	ID               string          `json:"id"`
	Name             string          `json:"name"`
	Context          string          `json:"context"`
	Namespace        string          `json:"namespace"`
	ManagerNamespace string          `json:"managerNamespace"`
	Server           string          `json:"server"` // as the user's kubeconfig has it, for people
	Kubeconfig       json.RawMessage `json:"kubeconfig"`
	Expires          time.Time       `json:"expires,omitzero"`   // when Kubeconfig's credentials do; zero: not known to
	Networks         []string        `json:"networks,omitempty"` // Docker networks from which the API server is reached
	AlsoProxy        []string        `json:"alsoProxy,omitempty"`
	NeverProxy       []string        `json:"neverProxy,omitempty"`
	// Virtual are subnets of the cluster (CIDR) that are to have virtual addresses
	// here, since their own are somebody else's; "auto": those that are.
	Virtual  []string `json:"virtual,omitempty"`
	Expose   []string `json:"expose,omitempty"`
	Hostname string   `json:"hostname,omitempty"`
	Client   string   `json:"client"` // user@host
}

// VirtualAuto in OpenConnection.Virtual means the subnets whose addresses are
// somebody else's here.
const VirtualAuto = "auto"

// CloseConnection ends a connection, by id.
type CloseConnection struct {
	ID    string `json:"id"`
	Cause string `json:"cause"`
}

// OpenEngagement asks for an engagement.
type OpenEngagement struct {
	ID         string   `json:"id"`
	Connection string   `json:"connection"` // id
	Kind       string   `json:"kind"`       // replace, intercept, ingest, wiretap
	Namespace  string   `json:"namespace,omitempty"`
	Workload   string   `json:"workload"` // [kind/]name
	Container  string   `json:"container,omitempty"`
	Ports      []string `json:"ports,omitempty"`   // as given with --port
	Address    string   `json:"address,omitempty"` // where the handler listens; 127.0.0.1
	// Service is the Service whose ports an intercept means, where several
	// select the workload's pods.
	Service string `json:"service,omitempty"`
	// HTTP says which HTTP requests of an intercept's ports come to the handler, or
	// of which of a wiretap's it has copies; nil: all that comes to them.
	HTTP *HTTPFilter `json:"http,omitempty"`
	// ToPod are ports of the pod (8080, 53/UDP) that the handler reaches on its
	// own loopback address, as a container of the pod does.
	ToPod []string `json:"toPod,omitempty"`
	// Handler is the container to run; nil leaves the handler to the caller.
	Handler *Handler `json:"handler,omitempty"`
	// Mount says what becomes of the remote volumes, as given with --mount:
	// true (each at its own path), false, or the folder below which they are
	// mounted; ":ro" behind it makes them read-only. Empty is true where the
	// engine has the volume plugin, and false where it cannot.
	Mount string `json:"mount,omitempty"`
	// VolumesPin is the pin of the key with which the caller mounts the remote
	// volumes himself (telemount mount), for a handler that is no container.
	// Environment then says where they are, and Mount's folder is where he mounts
	// them. Empty: he does not.
	VolumesPin string `json:"volumesPin,omitempty"`
	// DockerMount is the folder in the handler below which they are mounted, as
	// given with --docker-mount. It wins over a folder in Mount.
	DockerMount string `json:"dockerMount,omitempty"`
	// MountTimeoutMillis is for how long calls on a remote volume block while its
	// pod is away, before they fail with EIO; 0: the volume plugin's default, 30 s.
	MountTimeoutMillis int64 `json:"mountTimeoutMillis,omitempty"`
	// Secrets says what becomes of the Secrets that the container has: allow (the
	// default) gives them, and refuses the engagement where the user may not read
	// one; mask gives those that the user may read; deny gives none.
	Secrets string `json:"secrets,omitempty"`
	// Wait says what is waited for before the traffic goes to the handler: none
	// (its start), listening (its TCP and UDP ports) or healthy (what its image's
	// HEALTHCHECK says, or its ports where there is none). Empty is listening
	// for a container, and none where the handler is the caller's.
	Wait string `json:"wait,omitempty"`
	// WaitMillis fails the engagement if that takes longer; 0: it may take as
	// long as it takes, and the workload's own pods answer meanwhile.
	WaitMillis int64 `json:"waitMillis,omitempty"`
	// Holder is the presence subject (subject.Live) whose owner must live for
	// the engagement to live; empty: nobody in particular.
	Holder string `json:"holder,omitempty"`
}

// HTTPFilter matches an HTTP request that has all of Headers, and the path where one
// is given; of the paths at most one is.
type HTTPFilter struct {
	Headers    []HTTPHeader `json:"headers,omitempty"`
	PathPrefix string       `json:"pathPrefix,omitempty"` // /api: that, and what is below it
	PathEqual  string       `json:"pathEqual,omitempty"`
	PathRegex  string       `json:"pathRegex,omitempty"` // for the whole path, RE2
}

// HTTPHeader is a header with its value, or a regular expression (RE2) for the
// whole of it.
type HTTPHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Handler is a container to create, in the Docker Engine's own JSON, as
// Docker's own command line parsed the user's arguments.
type Handler struct {
	Name       string          `json:"name,omitempty"` // the user's --name
	Config     json.RawMessage `json:"config"`         // container.Config
	HostConfig json.RawMessage `json:"hostConfig"`     // container.HostConfig
	Networking json.RawMessage `json:"networking,omitempty"`
	Platform   string          `json:"platform,omitempty"`
	// Attach: the caller attaches to the container after HandlerCreated and
	// sends HandlerStart itself; otherwise connector starts it at once.
	Attach bool `json:"attach,omitempty"`
}

// Values of OpenEngagement.Secrets.
const (
	SecretsAllow = "allow"
	SecretsMask  = "mask"
	SecretsDeny  = "deny"
)

// Bounds of OpenEngagement.MountTimeoutMillis.
const (
	MountTimeoutMin = 100 * time.Millisecond
	MountTimeoutMax = time.Hour
)

// Values of OpenEngagement.Wait.
const (
	WaitNone      = "none"
	WaitListening = "listening"
	WaitHealthy   = "healthy"
)

// Environment is what an engagement's handler has, and is given to nobody else.
type Environment struct {
	Env    [][]byte `json:"env"` // KEY=value; values may hold any bytes but NUL
	Mounts []string `json:"mounts,omitempty"`
	// Volumes is for who mounts them himself; see OpenEngagement.VolumesPin.
	Volumes *RemoteVolumes `json:"volumes,omitempty"`
}

// RemoteVolumes is what a program needs to know to mount the volumes of an
// engagement: telemount mount reads it. Nothing of it is secret; it is of use to
// the holder of the key that the engagement was opened with.
type RemoteVolumes struct {
	Engagement string `json:"engagement"`
	// Door is where to dial (IP:port on the workspace's network), DoorPin the key
	// to demand there.
	Door    string         `json:"door"`
	DoorPin string         `json:"doorPin"`
	Mounts  []RemoteVolume `json:"mounts"`
	// TimeoutMillis is for how long calls block while the pod is away; 0: the
	// default, 30 s.
	TimeoutMillis int64 `json:"timeoutMillis,omitempty"`
}

// RemoteVolume is one mount of the engaged container: a directory, or a single
// file (subPath).
type RemoteVolume struct {
	Path     string `json:"path"` // in the container
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// CloseEngagement ends an engagement, by id or by name (workload/container or workload).
type CloseEngagement struct {
	ID         string `json:"id,omitempty"`
	Name       string `json:"name,omitempty"`
	Connection string `json:"connection,omitempty"`
	Cause      string `json:"cause"`
}

// State is all that connector knows.
type State struct {
	Version     string       `json:"version"`
	Connections []Connection `json:"connections"`
	Engagements []Engagement `json:"engagements"`
}

// ShortNames is the search domain by which programs of a machine, and handlers with
// a network of their own, find services of the connected namespace by bare names.
const ShortNames = "tel2-search"

// Connection is a connection's record. Keys are stable: `ctl status` prints it.
type Connection struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Context    string       `json:"context"`
	Namespace  string       `json:"namespace"`
	Server     string       `json:"server"`
	Phase      string       `json:"phase"` // connecting, connected, disconnecting
	Healthy    bool         `json:"healthy"`
	Cause      *fault.Error `json:"cause,omitempty"`
	Since      time.Time    `json:"since"`
	Daemon     string       `json:"daemon"`
	Options    string       `json:"options"` // digest of the flags, to tell a repeated connect from a changed one
	ServerInfo string       `json:"serverVersion,omitempty"`
	Manager    string       `json:"managerVersion,omitempty"`
	Transport  string       `json:"transport,omitempty"`
	Subnets    []string     `json:"subnets,omitempty"`
	// Virtual are those of the cluster's subnets that have other addresses here.
	Virtual  []event.VirtualSubnet `json:"virtual,omitempty"`
	Resolver string                `json:"resolver,omitempty"` // address of the DNS server at the VIF
}

// Engagement is an engagement's record.
type Engagement struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Connection string `json:"connection"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	// WorkloadKind is Deployment, StatefulSet or ReplicaSet.
	WorkloadKind string `json:"workloadKind"`
	Workload     string `json:"workload"`
	Container    string `json:"container"`
	Phase        string `json:"phase"` // requested, prepared, created, active, restoring
	// Filter says which requests are the engagement's, for people: without values
	// that may be credentials. Empty: all.
	Filter  string `json:"filter,omitempty"`
	Handler string `json:"handler,omitempty"`
	// Published are the host's ports that lead to the handler.
	Published []event.Published `json:"published,omitempty"`
	Ports     []event.Port      `json:"ports,omitempty"`
	Pods      []string          `json:"pods,omitempty"`
	// Method and Why are those of event.WorkloadPrepared, once that is stated.
	Method string `json:"method,omitempty"`
	Why    string `json:"why,omitempty"`
	// Lost is of how many connections a wiretap's handler has not had all copies; of
	// requests where it has a filter.
	Lost int64 `json:"lost,omitempty"`
	// NotHTTP are the ports of event.NotHTTP, where that has been stated.
	NotHTTP []event.Port `json:"notHTTP,omitempty"`
	Since   time.Time    `json:"since"`
}

// ListWorkloads asks for the workloads of a namespace (default: the connected one).
type ListWorkloads struct {
	Connection string `json:"connection"`
	Namespace  string `json:"namespace,omitempty"`
}

// Workloads is the reply.
type Workloads struct {
	Items []Workload `json:"items"`
}

// Workload is one that can, or says why it cannot, be engaged.
type Workload struct {
	Kind       string   `json:"kind"`
	Name       string   `json:"name"`
	Namespace  string   `json:"namespace"`
	Ready      string   `json:"ready"` // 1/1
	Containers []string `json:"containers"`
	Engageable bool     `json:"engageable"`
	Reason     string   `json:"reason,omitempty"` // why not
	Holder     string   `json:"holder,omitempty"` // user@host that engages it
	Engagement string   `json:"engagement,omitempty"`
}

// InstallCluster puts the cluster side in, or takes it out. ID is minted by the
// caller; facts are stated on scope installation.
type InstallCluster struct {
	ID         string          `json:"id"`
	Kubeconfig json.RawMessage `json:"kubeconfig"`
	Networks   []string        `json:"networks,omitempty"`
	Namespace  string          `json:"namespace"` // the manager's
	Image      string          `json:"image,omitempty"`
	Direct     string          `json:"direct,omitempty"` // type of the Service for the direct path; empty: NodePort
	// ExcludeEnv are names of variables, or patterns as of path.Match, that never
	// leave the cluster; only for an installation, which they replace.
	ExcludeEnv []string `json:"excludeEnv,omitempty"`
}

// JoinNetwork attaches a workspace container to a Docker network.
type JoinNetwork struct {
	Component string `json:"component"` // connector
	Network   string `json:"network"`
}

// StartDaemon starts the daemon container of a connection.
type StartDaemon struct {
	Connection string   `json:"connection"` // id
	Name       string   `json:"name"`       // the connection's name; the container is berth-<name>
	Networks   []string `json:"networks,omitempty"`
	Hostname   string   `json:"hostname,omitempty"`
	Expose     []string `json:"expose,omitempty"`
	// Bus is the configuration with which vif reaches the bus: bus.Config as
	// JSON, with the seed of an identity made for this connection.
	Bus json.RawMessage `json:"bus"`
}

// StopDaemon removes the daemon container of a connection.
type StopDaemon struct {
	Connection string `json:"connection"`
}

// SwitchHandler puts another handler in the place of an active engagement's: new
// connections wait, the old handler may finish what is under way and is stopped,
// the new one is created and started as with OpenEngagement, and when it is
// ready the connections go to it. HandlerSwitched tells of it, or SwitchFailed:
// then no handler runs and connections go on waiting, until the command is given
// again or the engagement ends.
type SwitchHandler struct {
	Engagement string  `json:"engagement"` // id
	Handler    Handler `json:"handler"`
}

// CheckHandler asks whether a handler could be created: image present, name
// free or held by a dead container of ours, flags honourable beside a shared
// network. It changes nothing but removing such a dead container.
type CheckHandler struct {
	Connection string  `json:"connection"`
	Handler    Handler `json:"handler"`
	Name       string  `json:"name"` // automatic name, used unless the user gave one
	// Engagement, where it is given, owns from here on the host's ports that the
	// handler publishes, until HandlerStop: a busy one is found before the cluster
	// is touched, and cannot be taken in between.
	Engagement string `json:"engagement,omitempty"`
	// Again: it is to take the place of Engagement's handler, whose ports and name
	// it gets when that has ended.
	Again bool `json:"again,omitempty"`
	// Ports are those that the handler is to listen on: no two handlers of a
	// connection can have the same one, since they share a network.
	Ports []event.Port `json:"ports,omitempty"`
	// Volumes: remote volumes are to be mounted, so the plugin is made sure of.
	Volumes bool `json:"volumes,omitempty"`
}

// VolumePlugin is the engine's volume plugin, which mounts remote volumes.
type VolumePlugin struct {
	Kind    string `json:"kind,omitempty"`   // managed or socket; empty: there is none
	Driver  string `json:"driver,omitempty"` // name of the volume driver
	Version string `json:"version,omitempty"`
	Pin     string `json:"pin,omitempty"`    // of its key
	Reason  string `json:"reason,omitempty"` // why there is none, or no managed one, or an older one
	// Pending: it is still being installed.
	Pending bool `json:"pending,omitempty"`
}

// CheckedHandler says what would be run.
type CheckedHandler struct {
	Name  string `json:"name"`
	Image string `json:"image"` // ID
	// Forwarded: the handler has a network of its own, and the engine's forwarder
	// listens on its ports; see AskListening.
	Forwarded bool `json:"forwarded,omitempty"`
	// Volumes is the plugin, if it was asked for.
	Volumes *VolumePlugin `json:"volumes,omitempty"`
}

// CreateHandler creates a handler. Env is the remote environment; the user's
// own entries in Handler.Config win.
type CreateHandler struct {
	Engagement string            `json:"engagement"`
	Connection string            `json:"connection"`
	Again      bool              `json:"again,omitempty"` // the engagement's earlier handler has ended
	Name       string            `json:"name"`            // automatic name
	Handler    Handler           `json:"handler"`
	Env        [][]byte          `json:"env,omitempty"`
	Mounts     []Mount           `json:"mounts,omitempty"`
	Files      []File            `json:"files,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Ports      []event.Port      `json:"ports,omitempty"` // see CheckHandler
	// Resolver is the address of the connection's DNS server, for a handler that
	// has a network of its own.
	Resolver string `json:"resolver,omitempty"`
}

// Mount is a remote volume to mount in the handler.
type Mount struct {
	Volume   string            `json:"volume"` // name of the Docker volume to create
	Path     string            `json:"path"`
	ReadOnly bool              `json:"readOnly,omitempty"`
	Driver   string            `json:"driver,omitempty"`  // as VolumePlugin says; empty: runner's own choice
	Options  map[string]string `json:"options,omitempty"` // of the telemount driver
}

// File is a remote volume that is a single file (subPath), which no Docker volume
// can be: it is copied into the handler before it starts, as it is then, and what
// the handler writes to it stays there.
type File struct {
	Path    string `json:"path"`
	Mode    uint32 `json:"mode"`
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Content []byte `json:"content"`
}

// EngagementRef names an engagement by id.
type EngagementRef struct {
	Engagement string `json:"engagement"`
}

// Health is what the engine knows of a handler.
type Health struct {
	Running bool `json:"running"`
	// Health is healthy, unhealthy or starting; empty: the image has no
	// HEALTHCHECK.
	Health string `json:"health,omitempty"`
}

// CreateContainer creates a container on a connection's network that is no
// handler: curl, docker-run. The caller attaches and starts it through the engine.
type CreateContainer struct {
	Connection string  `json:"connection"`
	Component  string  `json:"component"` // curl, docker-run
	Handler    Handler `json:"handler"`
}

// CreatedContainer is the reply.
type CreatedContainer struct {
	ContainerID string   `json:"containerID"`
	Warnings    []string `json:"warnings,omitempty"`
	// Published are the host's ports that lead to the container.
	Published []event.Published `json:"published,omitempty"`
}

// StartBuild asks for an image to be built by the engine. A remote context
// needs nothing else; for the others, and for one who wants to see the progress
// at once or whose death shall cancel the build, builder waits for the caller's
// stream (package buildstream) before it begins.
type StartBuild struct {
	ID         string `json:"id"`
	Engagement string `json:"engagement,omitempty"` // id, where it is built for one
	Context    string `json:"context"`              // directory, stdin or remote
	Remote     string `json:"remote,omitempty"`     // Git or HTTP URL
	Dockerfile string `json:"dockerfile,omitempty"` // path in the context
	// Options are key=value, with the keys of `docker build`; a key alone is true.
	Options []string `json:"options,omitempty"`
	Builder string   `json:"builder,omitempty"` // buildkit or classic; empty: the best there is
	Stream  bool     `json:"stream,omitempty"`  // wait for the stream with a remote context too
}

// StartedBuild is the reply.
type StartedBuild struct {
	ID      string `json:"id"`
	Already bool   `json:"already,omitempty"`
	Token   string `json:"token,omitempty"` // admits one stream
}

// BuildRef names a build by id.
type BuildRef struct {
	ID string `json:"id"`
}

// Access is what vif needs to reach the manager through the API server: as
// little as possible and short-lived where the cluster allows it.
type Access struct {
	Kubeconfig json.RawMessage `json:"kubeconfig"`
	Expires    time.Time       `json:"expires,omitzero"` // zero: does not
}

// OpenTunnel tells vif to join the cluster.
type OpenTunnel struct {
	Access         Access `json:"access"`
	ConnectionName string `json:"connectionName"`
	Namespace      string `json:"namespace"` // connected, for the DNS search list
	// Namespaces are the cluster's, as far as they can be listed: for a resolver
	// that asks whom by the domain.
	Namespaces       []string `json:"namespaces,omitempty"`
	ManagerNamespace string   `json:"managerNamespace"` //
	Pin              string   `json:"pin"`              // the manager's
	Direct           []string `json:"direct,omitempty"` // host:port to try before the API server
	AlsoProxy        []string `json:"alsoProxy,omitempty"`
	NeverProxy       []string `json:"neverProxy,omitempty"`
	Virtual          []string `json:"virtual,omitempty"` // see OpenConnection
}

// VIFStatus is the reply of VIFState.
type VIFStatus struct {
	TunnelUp  bool     `json:"tunnelUp"`
	Transport string   `json:"transport"`
	RTTMicros int64    `json:"rttMicros"`
	Subnets   []string `json:"subnets"`
	Flows     int      `json:"flows"`
	// Door is where the volume plugin is to dial (IP:port on the workspace's
	// network), and DoorPin the key to demand there.
	Door    string `json:"door,omitempty"`
	DoorPin string `json:"doorPin,omitempty"`
}

// Figures is the reply of VIFFigures: what vif, the manager and the agents of the
// connection's engagements hold, for who looks for what grows.
type Figures struct {
	Processes []Process `json:"processes"`
}

// Process is one of them.
type Process struct {
	Process     string `json:"process"` // "vif", "manager", "agent POD"
	Goroutines  int    `json:"goroutines"`
	Files       int    `json:"files"`       // open descriptors
	MemoryBytes int64  `json:"memoryBytes"` // resident
	HeapBytes   int64  `json:"heapBytes"`   // of it what the last collection found in use
	Streams     int    `json:"streams"`     // of its tunnel sessions
	CPUMicros   int64  `json:"cpuMicros"`   // used since it was started
}

// EngageHandler tells vif where an engagement's traffic goes, and who may use its
// volumes.
type EngageHandler struct {
	Engagement string       `json:"engagement"`
	Address    string       `json:"address"` // 127.0.0.1
	Ports      []event.Port `json:"ports"`
	Volumes    *UseVolumes  `json:"volumes,omitempty"` // nil: nobody
	// ToPod are ports of the pod (6379, 53/UDP) to listen on at 127.0.0.1, for
	// the handler to reach them.
	ToPod []string `json:"toPod,omitempty"`
}

// UseVolumes lets a volume plugin use the volumes of an engagement.
type UseVolumes struct {
	Token string `json:"token"` // of the engagement; a secret
	Pin   string `json:"pin"`   // the volume plugin's
}

// AskListening asks on which of the ports somebody listens.
type AskListening struct {
	Address string       `json:"address"` // 127.0.0.1
	Ports   []event.Port `json:"ports"`
	// Forwarded: a forwarder takes connections on these ports, whether the handler
	// behind it listens or not, and hangs up where it does not: they are to be
	// tried.
	Forwarded bool `json:"forwarded,omitempty"`
}

// ListeningPorts is the reply: those on which nobody does yet. UDP ports of
// another machine cannot be told, and are not among them.
type ListeningPorts struct {
	Missing []event.Port `json:"missing"`
}

// PauseEngagement makes new connections of an engagement wait, until
// EngageResume or for Millis at most. It may be repeated, and tells each time
// how many are still under way.
type PauseEngagement struct {
	Engagement string `json:"engagement"`
	Millis     int64  `json:"millis"`
}

// PausedEngagement is the reply: Busy are the open connections on which
// something was sent or received a moment ago.
type PausedEngagement struct {
	Open int `json:"open"`
	Busy int `json:"busy"`
}
