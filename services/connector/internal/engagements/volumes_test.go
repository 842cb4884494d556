package engagements

import (
	"reflect"
	"testing"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

func TestWish(t *testing.T) {
	for _, x := range []struct {
		mount, docker string
		want          wish
		code          fault.Code
	}{
		{"", "", wish{root: "/"}, ""},
		{"true", "", wish{asked: true, root: "/"}, ""},
		{"true:ro", "", wish{asked: true, readOnly: true, root: "/"}, ""},
		{"false", "", wish{off: true, root: "/"}, ""},
		{"/remote", "", wish{asked: true, root: "/remote"}, ""},
		{"/remote/:ro", "", wish{asked: true, readOnly: true, root: "/remote"}, ""},
		{"", "/in/here", wish{asked: true, root: "/in/here"}, ""},
		{"/there:ro", "/here", wish{asked: true, readOnly: true, root: "/here"}, ""},
		{"perhaps", "", wish{}, fault.InvalidArgument},
		{"remote", "", wish{}, fault.InvalidArgument},
		{":ro", "", wish{}, fault.InvalidArgument},
		{"false:ro", "", wish{}, fault.InvalidArgument},
		{"false", "/here", wish{}, fault.InvalidArgument},
		{"", "here", wish{}, fault.InvalidArgument},
	} {
		got, err := wishOf(command.OpenEngagement{Mount: x.mount, DockerMount: x.docker})
		if got != x.want || x.code == "" && err != nil || x.code != "" && fault.CodeOf(err) != x.code {
			t.Errorf("--mount %q --docker-mount %q: %+v, %v, want %+v %s", x.mount, x.docker, got, err, x.want, x.code)
		}
	}
}

func TestTimeout(t *testing.T) {
	for millis, ok := range map[int64]bool{0: true, 100: true, 3600_000: true, 99: false, -1: false, 3600_001: false} {
		if _, err := wishOf(command.OpenEngagement{MountTimeoutMillis: millis}); (err == nil) != ok {
			t.Errorf("%d ms: %v", millis, err)
		}
	}
}

func TestWithoutPlugin(t *testing.T) {
	none := &command.VolumePlugin{Reason: "rootless"}
	if v, why, err := newVolumes(wish{root: "/"}, none); v != nil || why != "rootless" || err != nil {
		t.Errorf("nobody asked for volumes: %v %q %v", v, why, err)
	}
	if v, _, err := newVolumes(wish{root: "/", asked: true}, none); v != nil || fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("volumes were asked for: %v %v", v, err)
	}
	if v, _, err := newVolumes(wish{root: "/"}, &command.VolumePlugin{Reason: "being installed", Pending: true}); v != nil || fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a plugin that is on its way: %v %v", v, err)
	}
	if v, why, err := newVolumes(wish{off: true}, none); v != nil || why != "" || err != nil {
		t.Errorf("volumes were not wanted: %v %q %v", v, why, err)
	}
	var v *volumes // what then is said
	if v.use() != nil || v.hash() != "" {
		t.Error("a token without volumes")
	}
	if m, root := v.env(lease.Environment{Mounts: []string{"/a"}, Volumes: []lease.Volume{{Path: "/a"}}}); m != nil || root != "/" {
		t.Errorf("environment: %v %q", m, root)
	}
}

func TestMounts(t *testing.T) {
	plugin := &command.VolumePlugin{Kind: "managed", Driver: "telemount:latest", Pin: "p"}
	found := []lease.Volume{{Path: "/data"}, {Path: "/etc/one", File: true}, {Path: "/data/sub/", ReadOnly: true}}
	door := command.VIFStatus{Door: "172.18.0.4:4", DoorPin: "d"}
	opts := func(path string, more ...string) map[string]string {
		m := map[string]string{"engagement": "e", "container": "c", "path": path, "door": "172.18.0.4:4", "pin": "d"}
		if len(more) > 0 {
			m["ro"] = more[0]
		}
		if len(more) > 1 {
			m["timeout"] = more[1]
		}
		return m
	}
	for _, x := range []struct {
		name string
		kind lease.Kind
		wish wish
		want []command.Mount
	}{
		{"at their own paths", lease.Replace, wish{root: "/"}, []command.Mount{
			{Volume: "berth-e-0", Driver: "telemount:latest", Path: "/data", Options: opts("/data")},
			{Volume: "berth-e-1", Driver: "telemount:latest", Path: "/data/sub", ReadOnly: true, Options: opts("/data/sub", "true")}}},
		{"below a folder, read-only", lease.Intercept, wish{root: "/r", readOnly: true}, []command.Mount{
			{Volume: "berth-e-0", Driver: "telemount:latest", Path: "/r/data", ReadOnly: true, Options: opts("/data", "true")},
			{Volume: "berth-e-1", Driver: "telemount:latest", Path: "/r/data/sub", ReadOnly: true, Options: opts("/data/sub", "true")}}},
		{"an ingest reads only, and does not wait", lease.Ingest, wish{root: "/", timeout: 100 * time.Millisecond}, []command.Mount{
			{Volume: "berth-e-0", Driver: "telemount:latest", Path: "/data", ReadOnly: true, Options: opts("/data", "true", "100ms")},
			{Volume: "berth-e-1", Driver: "telemount:latest", Path: "/data/sub", ReadOnly: true, Options: opts("/data/sub", "true", "100ms")}}},
	} {
		v, _, err := newVolumes(x.wish, plugin)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.mounts(lease.EngagementSpec{ID: "e", Container: "c", Kind: x.kind}, found, door); !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", x.name, got, x.want)
		}
	}
}
