package workload

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func fromSecret(name, secret string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: "k"}}}
}

func TestSecrets(t *testing.T) {
	ref := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	w := Workload{Volumes: []corev1.Volume{
		{Name: "v1", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "files"}}},
		{Name: "v2", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: ref("part")}}, {ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		}}}},
		{Name: "v3", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "of-another-container"}}},
		{Name: "v4", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("none")}}},
	}}
	c := corev1.Container{
		Env:          []corev1.EnvVar{{Name: "PLAIN", Value: "x"}, fromSecret("TOKEN", "one"), fromSecret("KEY", "one")},
		EnvFrom:      []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref("all")}, Prefix: "P_"}, {ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("cm")}}},
		VolumeMounts: []corev1.VolumeMount{{Name: "v1", MountPath: "/a"}, {Name: "v1", MountPath: "/b/f", SubPath: "f"}, {Name: "v2", MountPath: "/c"}, {Name: "v4", MountPath: "/d"}},
	}
	want := []SecretUse{{Name: "all", Prefixes: []string{"P_"}}, {Name: "files", Paths: []string{"/a", "/b/f"}}, {Name: "one", Vars: []string{"TOKEN", "KEY"}}, {Name: "part", Paths: []string{"/c"}}}
	if got := w.Secrets(c); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if got := (Workload{}).Secrets(corev1.Container{}); len(got) != 0 {
		t.Errorf("of nothing: %+v", got)
	}
}
