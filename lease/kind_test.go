package lease

import "testing"

func TestNames(t *testing.T) {
	for ref, want := range map[string]bool{"web": true, "deploy/web": true, "Deployment/web": true, "sts/web": false, "web/app": false, "x/web": false, "deploy/w": false, "": false} {
		if got := Names(ref, Deployment, "web"); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
}

func TestKindOf(t *testing.T) {
	for s, want := range map[string]string{
		"deploy": Deployment, "Deployment": Deployment, "deployments": Deployment, "deployment.apps": Deployment, "deployments.v1.apps": Deployment,
		"sts": StatefulSet, "STS": StatefulSet, "rs": ReplicaSet, "ds": DaemonSet, "daemonset": DaemonSet, "job": Job, "jobs.batch": Job, "cj": CronJob,
		"pod": Pod, "po": Pod, "pods.v1.": Pod, "rc": ReplicationController, "svc": Service,
		"": "", "rollout": "", "deployment.": Deployment, "deployment.example.org": "", "pod.apps": "", "job.apps": "",
	} {
		if got, ok := KindOf(s); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", s, got, ok, want)
		}
	}
}
