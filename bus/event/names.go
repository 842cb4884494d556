package event

import "berth.dev/bus/subject"

// All holds a zero value of every fact, in the order of a life: connection,
// engagement, build, installation.
func All() []Data {
	return []Data{
		ConnectionRequested{}, StagePassed{}, DaemonStarted{}, DaemonExited{}, VIFStarted{}, TunnelOpened{}, TunnelLost{}, InterfaceReady{}, DNSReady{}, VIFFailed{}, VolumesLost{}, Connected{}, HealthChanged{}, ConnectionFailed{}, Disconnected{},
		EngagementRequested{}, SecretsReviewed{}, WorkloadPrepared{}, HandlerCreated{}, HandlerFailed{}, HandlerStarted{}, HandlerReady{}, HandlerSwitched{}, SwitchFailed{}, HandlerExited{}, PortsClosed{}, PortsOpened{}, EngagementActive{}, PodsChanged{}, CopiesLost{}, NotHTTP{}, Restoring{}, EngagementEnded{}, EngagementFailed{},
		BuildStarted{}, BuildStep{}, BuildFinished{}, BuildFailed{},
		InstallationStep{}, Installed{}, Uninstalled{}, InstallationFailed{},
	}
}

// Fact implements Data.
func (ConnectionRequested) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "requested"
}

// Fact implements Data.
func (StagePassed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "stage-passed"
}

// Fact implements Data.
func (DaemonStarted) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Runner, "daemon-started"
}

// Fact implements Data.
func (DaemonExited) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Runner, "daemon-exited"
}

// Fact implements Data.
func (VIFStarted) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "started"
}

// Fact implements Data.
func (TunnelOpened) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "tunnel-opened"
}

// Fact implements Data.
func (TunnelLost) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "tunnel-lost"
}

// Fact implements Data.
func (InterfaceReady) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "interface-ready"
}

// Fact implements Data.
func (DNSReady) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "dns-ready"
}

// Fact implements Data.
func (VIFFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "failed"
}

// Fact implements Data.
func (VolumesLost) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.VIF, "volumes-lost"
}

// Fact implements Data.
func (Connected) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "connected"
}

// Fact implements Data.
func (HealthChanged) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "health-changed"
}

// Fact implements Data.
func (ConnectionFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "failed"
}

// Fact implements Data.
func (Disconnected) Fact() (subject.Scope, subject.Service, string) {
	return subject.Connection, subject.Connector, "disconnected"
}

// Fact implements Data.
func (EngagementRequested) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "requested"
}

// Fact implements Data.
func (SecretsReviewed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "secrets-reviewed"
}

// Fact implements Data.
func (WorkloadPrepared) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "workload-prepared"
}

// Fact implements Data.
func (HandlerCreated) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "handler-created"
}

// Fact implements Data.
func (HandlerFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "handler-failed"
}

// Fact implements Data.
func (HandlerStarted) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "handler-started"
}

// Fact implements Data.
func (HandlerReady) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "handler-ready"
}

// Fact implements Data.
func (HandlerSwitched) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "handler-switched"
}

// Fact implements Data.
func (SwitchFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "switch-failed"
}

// Fact implements Data.
func (PortsClosed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "ports-closed"
}

// Fact implements Data.
func (PortsOpened) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "ports-opened"
}

// Fact implements Data.
func (HandlerExited) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Runner, "handler-exited"
}

// Fact implements Data.
func (EngagementActive) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "active"
}

// Fact implements Data.
func (PodsChanged) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "pods-changed"
}

// Fact implements Data.
func (CopiesLost) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "copies-lost"
}

// Fact implements Data.
func (NotHTTP) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "not-http"
}

// Fact implements Data.
func (Restoring) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "restoring"
}

// Fact implements Data.
func (EngagementEnded) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "ended"
}

// Fact implements Data.
func (EngagementFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Engagement, subject.Connector, "failed"
}

// Fact implements Data.
func (BuildStarted) Fact() (subject.Scope, subject.Service, string) {
	return subject.Build, subject.Builder, "started"
}

// Fact implements Data.
func (BuildStep) Fact() (subject.Scope, subject.Service, string) {
	return subject.Build, subject.Builder, "step"
}

// Fact implements Data.
func (BuildFinished) Fact() (subject.Scope, subject.Service, string) {
	return subject.Build, subject.Builder, "finished"
}

// Fact implements Data.
func (BuildFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Build, subject.Builder, "failed"
}

// Fact implements Data.
func (InstallationStep) Fact() (subject.Scope, subject.Service, string) {
	return subject.Installation, subject.Connector, "step"
}

// Fact implements Data.
func (Installed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Installation, subject.Connector, "installed"
}

// Fact implements Data.
func (Uninstalled) Fact() (subject.Scope, subject.Service, string) {
	return subject.Installation, subject.Connector, "uninstalled"
}

// Fact implements Data.
func (InstallationFailed) Fact() (subject.Scope, subject.Service, string) {
	return subject.Installation, subject.Connector, "failed"
}
