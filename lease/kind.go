package lease

import "strings"

// The kinds of workloads that can be engaged.
const (
	Deployment  = "Deployment"
	StatefulSet = "StatefulSet"
	ReplicaSet  = "ReplicaSet"
)

// Kinds that people name and that cannot be engaged.
const (
	DaemonSet             = "DaemonSet"
	Job                   = "Job"
	CronJob               = "CronJob"
	Pod                   = "Pod"
	ReplicationController = "ReplicationController"
	Service               = "Service"
)

// kinds are by what kubectl takes for them: singular, plural and short name.
var kinds = map[string]string{
	"deployment": Deployment, "deployments": Deployment, "deploy": Deployment,
	"statefulset": StatefulSet, "statefulsets": StatefulSet, "sts": StatefulSet,
	"replicaset": ReplicaSet, "replicasets": ReplicaSet, "rs": ReplicaSet,
	"daemonset": DaemonSet, "daemonsets": DaemonSet, "ds": DaemonSet,
	"job": Job, "jobs": Job,
	"cronjob": CronJob, "cronjobs": CronJob, "cj": CronJob,
	"pod": Pod, "pods": Pod, "po": Pod,
	"replicationcontroller": ReplicationController, "replicationcontrollers": ReplicationController, "rc": ReplicationController,
	"service": Service, "services": Service, "svc": Service,
}

// groups are the API groups of kinds that are not in the core one.
var groups = map[string]string{
	Deployment: "apps", StatefulSet: "apps", ReplicaSet: "apps", DaemonSet: "apps", Job: "batch", CronJob: "batch",
}

// KindOf reads a kind as kubectl does: in any case, in the plural, by its short
// name, and with version and group behind it (deployments.apps, sts.v1.apps).
func KindOf(s string) (kind string, ok bool) {
	name, group, _ := strings.Cut(strings.ToLower(s), ".")
	kind, ok = kinds[name]
	return kind, ok && (group == "" || group == groups[kind] || group == "v1."+groups[kind])
}

// Names reports whether ref, a workload's name with or without its kind before
// it (KindOf), names the one of that kind and name.
func Names(ref, kind, name string) bool {
	k, n, ok := strings.Cut(ref, "/")
	if !ok {
		return ref == name
	}
	named, known := KindOf(k)
	return known && named == kind && n == name
}
