// Package event defines the facts: what has happened, typed, in the envelope
// of CloudEvents 1.0 (https://github.com/cloudevents/spec, JSON format).
//
// A fact is stated by the one service that knows it, on a subject made by
// package subject, into the stream EVENTS. Facts only ever gain fields. State
// is a fold over facts, kept nowhere else. Packets, build contexts, terminals
// and environment values never are part of a fact: it carries a reference, and
// the holder answers.
//
// Every fact type is listed in [All], from which the JSON Schemas under
// bus/schema are generated and against which the golden files are checked.
package event

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// Envelope is a CloudEvent in structured JSON mode. Data is the JSON of one of
// this package's fact types.
type Envelope struct {
	SpecVersion     string          `json:"specversion"` // "1.0"
	ID              string          `json:"id"`          // unique; the stream drops repeats
	Source          string          `json:"source"`      // /services/<service>
	Type            string          `json:"type"`        // dev.berth.<scope>.<service>.<fact>.v1
	Subject         string          `json:"subject"`     // id of the connection, engagement, build or installation
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype"` // application/json
	DataSchema      string          `json:"dataschema"`      // <type>.json, a file under bus/schema
	Data            json.RawMessage `json:"data"`
}

// Data is a fact's content.
type Data interface {
	// Fact says on what scope, by which service and under which name the fact
	// is stated.
	Fact() (subject.Scope, subject.Service, string)
}

// TypeOf is the CloudEvents type of d.
func TypeOf(d Data) string {
	scope, service, fact := d.Fact()
	return fmt.Sprintf("dev.berth.%s.%s.%s.v1", scope, service, fact)
}

// New puts d about id into an envelope and returns the subject to publish it on.
func New(id string, d Data) (string, Envelope, error) {
	scope, service, fact := d.Fact()
	body, err := json.Marshal(d)
	if err != nil {
		return "", Envelope{}, fmt.Errorf("marshal fact %s: %w", TypeOf(d), err)
	}
	t := TypeOf(d)
	return subject.Fact(scope, id, service, fact), Envelope{
		SpecVersion: "1.0", ID: rand.Text(), Source: "/services/" + string(service), Type: t,
		Subject: id, Time: time.Now().UTC(), DataContentType: "application/json",
		DataSchema: t + ".json", Data: body,
	}, nil
}

// Decode reads e's data as a T if e is a fact of that type.
func Decode[T Data](e Envelope) (T, bool) {
	var v T
	if e.Type != TypeOf(v) || json.Unmarshal(e.Data, &v) != nil {
		return v, false
	}
	return v, true
}

// Terminal reports whether e is the last fact about its engagement,
// connection, build or installation. There is exactly one for each.
func Terminal(e Envelope) bool {
	switch e.Type {
	case TypeOf(EngagementEnded{}), TypeOf(EngagementFailed{}),
		TypeOf(Disconnected{}), TypeOf(ConnectionFailed{}),
		TypeOf(BuildFinished{}), TypeOf(BuildFailed{}),
		TypeOf(Installed{}), TypeOf(Uninstalled{}), TypeOf(InstallationFailed{}):
		return true
	}
	return false
}

// Stage is a step of `ctl connect`, in the order of Stages.
type Stage string

// The stages of a connection.
const (
	StageImage     Stage = "image"
	StageDaemon    Stage = "daemon"
	StageAPIServer Stage = "API server"
	StageManager   Stage = "manager"
	StageTunnel    Stage = "tunnel"
	StageVIF       Stage = "VIF"
	StageDNS       Stage = "DNS"
)

// Port is a port that an engagement brings to the handler.
type Port struct {
	Container uint16 `json:"container"`
	Handler   uint16 `json:"handler"`
	Protocol  string `json:"protocol"` // TCP or UDP
	Name      string `json:"name,omitempty"`
}

// ---- connection ----

// ConnectionRequested: a connection was asked for and accepted.
type ConnectionRequested struct {
	Name      string `json:"name"`
	Context   string `json:"context"`
	Namespace string `json:"namespace"`
	Server    string `json:"server"` // URL of the API server as the user's kubeconfig has it
}

// StagePassed: connector passed a stage that has no fact of its own.
type StagePassed struct {
	Stage  Stage  `json:"stage"`
	Detail string `json:"detail,omitempty"`
	Millis int64  `json:"millis"` // since the connection was requested
}

// DaemonStarted: the daemon container runs.
type DaemonStarted struct {
	Container   string `json:"container"`   // name
	ContainerID string `json:"containerID"` //
}

// DaemonExited: the daemon container is gone.
type DaemonExited struct {
	Container string       `json:"container"`
	ExitCode  int          `json:"exitCode"`
	Error     *fault.Error `json:"error,omitempty"` // why it could not be started, if so
}

// VIFStarted: the vif process of a connection is up and takes commands.
type VIFStarted struct {
	Version string `json:"version"`
	Pin     string `json:"pin"` // of the key that it will open tunnels with
}

// TunnelOpened: the tunnel to the manager stands (again).
type TunnelOpened struct {
	Transport string `json:"transport"` // direct, pods-proxy, portforward-websocket, portforward-spdy
	RTTMicros int64  `json:"rttMicros"`
}

// TunnelLost: the tunnel is cut; vif tries to open it again.
type TunnelLost struct {
	Error fault.Error `json:"error"`
}

// InterfaceReady: the VIF and its routes stand.
type InterfaceReady struct {
	Interface string   `json:"interface"`
	Subnets   []string `json:"subnets"` // routed into the cluster, CIDR
	// Virtual are those of the cluster's subnets that have other addresses here.
	Virtual []VirtualSubnet `json:"virtual,omitempty"`
}

// VirtualSubnet is a subnet of the cluster and the one of the same size that
// stands for it here, CIDR.
type VirtualSubnet struct {
	Cluster string `json:"cluster"`
	Here    string `json:"here"`
}

// DNSReady: cluster names resolve in the daemon's network.
type DNSReady struct {
	Server string   `json:"server"`
	Search []string `json:"search"`
}

// VIFFailed: vif could not do what it was told; Error.Stage says at what.
type VIFFailed struct {
	Error fault.Error `json:"error"`
}

// VolumesLost: what the volume plugin had mounted for an engagement is lost for
// the handler that uses it, for good: every call on it fails (ENOTCONN).
type VolumesLost struct {
	Engagement string `json:"engagement"`
	Cause      string `json:"cause"` // was killed, is ending, is gone: the volume plugin
}

// Connected: all stages passed, the connection can be used.
type Connected struct {
	Name          string   `json:"name"`
	Namespace     string   `json:"namespace"`
	Daemon        string   `json:"daemon"` // name of the daemon container
	Server        string   `json:"server"`
	ServerVersion string   `json:"serverVersion"`
	Manager       string   `json:"manager"` // version
	Transport     string   `json:"transport"`
	Subnets       []string `json:"subnets"`
	Millis        int64    `json:"millis"`
}

// HealthChanged: the connection's health, probed through the live path, changed.
type HealthChanged struct {
	Healthy bool         `json:"healthy"`
	Cause   *fault.Error `json:"cause,omitempty"`
}

// ConnectionFailed is terminal: the connection did not come up, or broke.
type ConnectionFailed struct {
	Error fault.Error `json:"error"`
}

// Disconnected is terminal: the connection was ended.
type Disconnected struct {
	Cause string `json:"cause"` // quit, command ended, …
}

// ---- engagement ----

// EngagementRequested: an engagement was asked for and accepted.
type EngagementRequested struct {
	Name         string `json:"name"` // workload/container
	Connection   string `json:"connection"`
	Kind         string `json:"kind"` // replace, intercept, ingest, wiretap
	Namespace    string `json:"namespace"`
	WorkloadKind string `json:"workloadKind"`
	Workload     string `json:"workload"`
	Container    string `json:"container"`
	Image        string `json:"image,omitempty"` // the handler's
	// Filter says which HTTP requests come to the handler, for people: without values
	// that may be credentials. Empty: all.
	Filter string `json:"filter,omitempty"`
	// NoVolumes is why the remote volumes are not mounted, where nobody has said
	// that they are not to be.
	NoVolumes string `json:"noVolumes,omitempty"`
}

// SecretsReviewed: the Secrets of the engaged container, by name, that the user
// gets, and those whose values are kept back. Stated where there are any.
type SecretsReviewed struct {
	Policy  string   `json:"policy"` // allow, mask or deny
	Granted []string `json:"granted"`
	Masked  []string `json:"masked"`
}

// WorkloadPrepared: an agent stands in every pod of the workload.
type WorkloadPrepared struct {
	Pods   []string `json:"pods"`
	Ports  []Port   `json:"ports"`
	Method string   `json:"method"`        // ephemeral (beside the container, nothing restarted), surge or recreate (how pods were exchanged)
	Why    string   `json:"why,omitempty"` // not ephemeral, where it could have been
	Millis int64    `json:"millis"`
}

// HandlerCreated: the handler's container exists and may be attached to.
type HandlerCreated struct {
	Container   string `json:"container"`
	ContainerID string `json:"containerID"`
	Image       string `json:"image"` // ID
	// Published are the host's ports that lead to the handler.
	Published []Published `json:"published,omitempty"`
}

// Published is a port of the Docker Engine's machine that leads to a container's.
type Published struct {
	HostIP    string `json:"hostIP"` // 0.0.0.0 or :: for every address
	HostPort  uint16 `json:"hostPort"`
	Container uint16 `json:"container"`
	Protocol  string `json:"protocol"` // tcp or udp
}

// HandlerFailed: the handler's container could not be created or started.
type HandlerFailed struct {
	Error fault.Error `json:"error"`
}

// HandlerStarted: the handler's process runs.
type HandlerStarted struct {
	Container   string `json:"container"`
	ContainerID string `json:"containerID,omitempty"`
}

// HandlerReady: what was waited for has come true, and the traffic may go to the
// handler.
type HandlerReady struct {
	By     string `json:"by"`     // none, listening or healthy
	Millis int64  `json:"millis"` // since the handler was started
}

// HandlerSwitched: another handler has taken the place of the engagement's, and
// every connection from here on goes to it.
type HandlerSwitched struct {
	Container   string `json:"container"`
	ContainerID string `json:"containerID"`
	Image       string `json:"image"`  // ID
	Millis      int64  `json:"millis"` // for which new connections had to wait
}

// SwitchFailed: the handler that was to take the place did not come about, was
// not ready in time or has ended. No handler runs; new connections wait.
type SwitchFailed struct {
	Error    fault.Error `json:"error"`
	ExitCode *int        `json:"exitCode,omitempty"`
}

// HandlerExited: the handler's container has ended.
type HandlerExited struct {
	Container   string `json:"container"`
	ContainerID string `json:"containerID,omitempty"`
	ExitCode    int    `json:"exitCode"`
	OOMKilled   bool   `json:"oomKilled,omitempty"`
}

// PortsClosed: the forwarder of a handler's published ports died and could not be
// made anew; runner tries again until it can.
type PortsClosed struct {
	Container string      `json:"container"`
	Published []Published `json:"published"`
	Error     fault.Error `json:"error"`
}

// PortsOpened: a handler's published ports, which were closed, lead to it again.
type PortsOpened struct {
	Container string      `json:"container"`
	Published []Published `json:"published"`
}

// EngagementActive: the workload's traffic arrives at the handler.
type EngagementActive struct {
	Pods   []string `json:"pods"`
	Ports  []Port   `json:"ports"`
	Millis int64    `json:"millis"` // since the engagement was requested
}

// PodsChanged: the pods through which an active engagement is fed changed.
type PodsChanged struct {
	Pods []string `json:"pods"`
}

// CopiesLost: a wiretap's handler does not take all copies; of so many connections,
// requests where it has a filter, it has not had everything, since the engagement
// began. Neither the workload nor its clients waited for it.
type CopiesLost struct {
	Connections int64 `json:"connections"`
}

// NotHTTP: connections that are not HTTP (TLS too) have come to these ports of an
// engagement with a filter, which is for requests: its handler has nothing of them.
// Stated when the first one comes to a port; Ports are all to which one has come.
type NotHTTP struct {
	Ports []Port `json:"ports"`
}

// ConnectorStopped is the cause of the end of all that connector holds when it is
// told to end: its container was stopped, or the Docker Engine.
const ConnectorStopped = "connector was stopped"

// Restoring: the engagement is being undone.
type Restoring struct {
	Cause string `json:"cause"`
}

// EngagementEnded is terminal: the workload runs its own container again.
type EngagementEnded struct {
	Cause    string `json:"cause"`              // handler exited, leave, quit, interrupted, client gone, …
	ExitCode *int   `json:"exitCode,omitempty"` // the handler's, if it had been started
}

// EngagementFailed is terminal: it did not come about, or broke; the workload
// is as before or Error says what is left to the lease.
type EngagementFailed struct {
	Error    fault.Error `json:"error"`
	ExitCode *int        `json:"exitCode,omitempty"`
}

// ---- build ----

// BuildStarted: the engine was asked to build an image.
type BuildStarted struct {
	Engagement string `json:"engagement,omitempty"` // id, where it is built for one
	Context    string `json:"context"`              // directory, stdin, or the URL
	Builder    string `json:"builder"`              // buildkit or classic
}

// BuildStep: a step of a build is over. Steps of BuildKit overlap.
type BuildStep struct {
	Step   int    `json:"step"` // in the order in which they began, from 1
	Name   string `json:"name"`
	Cached bool   `json:"cached,omitempty"`
	Failed bool   `json:"failed,omitempty"`
	Millis int64  `json:"millis"`
}

// Phase is how long a part of something took.
type Phase struct {
	Name   string `json:"name"`
	Millis int64  `json:"millis"`
}

// BuildFinished is terminal: the image is on the engine.
type BuildFinished struct {
	ImageID string   `json:"imageID"`
	Tags    []string `json:"tags,omitempty"` // as asked for; they may have moved since
	Builder string   `json:"builder"`
	Phases  []Phase  `json:"phases"` // context (listing and sending it), steps, total
}

// BuildFailed is terminal: there is no image.
type BuildFailed struct {
	Error     fault.Error `json:"error"`
	Cancelled bool        `json:"cancelled,omitempty"`
	Output    []string    `json:"output,omitempty"` // last lines of the step that failed
}

// ---- installation ----

// InstallationStep: an object was applied or deleted, or a wait began.
type InstallationStep struct {
	Action string `json:"action"` // applied, deleted, waiting
	Object string `json:"object"` // kind namespace/name
}

// Installed is terminal: the manager runs and answers.
type Installed struct {
	Namespace string `json:"namespace"`
	Version   string `json:"version"`
	Webhook   string `json:"webhook"`
}

// Uninstalled is terminal: nothing of Berth is left in the cluster.
type Uninstalled struct {
	Namespace string `json:"namespace"`
}

// InstallationFailed is terminal.
type InstallationFailed struct {
	Error fault.Error `json:"error"`
}
