package ports

import (
	"reflect"
	"slices"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/go-connections/nat"
)

func TestPublishedAgain(t *testing.T) {
	// As engines answer: 20.10 gives both families ports of their own where it
	// chooses, later ones the same.
	engine := nat.PortMap{
		"80/tcp":   {{HostIP: "0.0.0.0", HostPort: "8080"}, {HostIP: "::", HostPort: "8080"}},
		"81/udp":   {{HostIP: "0.0.0.0", HostPort: "32768"}, {HostIP: "::", HostPort: "32769"}},
		"82/tcp":   {{HostIP: "127.0.0.1", HostPort: "9000"}, {HostIP: "::1", HostPort: "9000"}, {HostIP: "127.0.0.1", HostPort: "9001"}},
		"83/tcp":   nil, // exposed, not published
		"8080/tcp": {{HostIP: "0.0.0.0", HostPort: "1"}},
	}
	all := published(engine)
	if len(all) != 8 || all[0] != (event.Published{HostIP: "0.0.0.0", HostPort: 8080, Container: 80, Protocol: "tcp"}) {
		t.Fatalf("published %+v", all)
	}
	if back := Read(Label(all)); !slices.Equal(back, all) {
		t.Errorf("label %q read back as %+v", Label(all), back)
	}
	want := Want{
		"80/tcp":   {{HostPort: "8080"}},
		"81/udp":   {{HostIP: "0.0.0.0", HostPort: "32768"}, {HostIP: "::", HostPort: "32769"}},
		"82/tcp":   {{HostIP: "127.0.0.1", HostPort: "9000"}, {HostIP: "127.0.0.1", HostPort: "9001"}, {HostIP: "::1", HostPort: "9000"}},
		"8080/tcp": {{HostIP: "0.0.0.0", HostPort: "1"}},
	}
	if got := wanted(all); !reflect.DeepEqual(got, want) {
		t.Errorf("wanted %v\nwant   %v", got, want)
	}
	if got := flagValue(want); got != "80/tcp,81/udp,82/tcp,8080/tcp" {
		t.Errorf("flag %q", got)
	}
	for _, label := range []string{"", "nonsense", "127.0.0.1:1->x", "1->80/tcp"} {
		if got := Read(label); got != nil {
			t.Errorf("%q read as %+v", label, got)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := check(Want{"80/tcp": nil, "53/udp": nil}); err != nil {
		t.Error(err)
	}
	for _, p := range []nat.Port{"80/sctp", "0/tcp"} {
		if err := check(Want{p: nil}); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// What engines say of a port that they cannot publish.
func TestHostPort(t *testing.T) {
	for msg, want := range map[string][2]string{
		"driver failed programming external connectivity on endpoint x (1): Bind for 0.0.0.0:8080 failed: port is already allocated":    {"0.0.0.0", "8080"},
		"Error starting userland proxy: listen tcp4 127.0.0.1:8080: bind: address already in use":                                       {"127.0.0.1", "8080"},
		"failed to bind host port for [::1]:8080:172.17.0.2:80/tcp: address already in use":                                             {"[::1]", "8080"},
		"Bind for :::8080 failed: port is already allocated":                                                                            {"::", "8080"},
		"Ports are not available: exposing port TCP 0.0.0.0:8080 -> 127.0.0.1:0: listen tcp 0.0.0.0:8080: bind: address already in use": {"0.0.0.0", "8080"},
		"listen udp4 192.0.2.77:53: bind: cannot assign requested address":                                                              {"192.0.2.77", "53"},
	} {
		got := hostPort.FindStringSubmatch(msg)
		if got == nil || got[1] != want[0] || got[2] != want[1] {
			t.Errorf("%s: %q", msg, got)
		}
	}
}
