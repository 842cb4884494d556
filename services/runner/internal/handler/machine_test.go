package handler

import (
	"encoding/json"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-connections/nat"
)

// onMachinePlan is the plan of a container of which this is given.
func onMachinePlan(t *testing.T, host container.HostConfig) (*Plan, error) {
	t.Helper()
	raw, err := json.Marshal(host)
	if err != nil {
		t.Fatal(err)
	}
	return newMachinePlan(command.Handler{HostConfig: raw}, "intercept-web-8080")
}

func TestPlanOnMachine(t *testing.T) {
	ports := []event.Port{{Container: 80, Handler: 8080, Protocol: "TCP"}, {Container: 53, Handler: 53, Protocol: "UDP"}}
	bind := func(port, host string) nat.PortMap {
		return nat.PortMap{nat.Port(port): {{HostIP: "127.0.0.1", HostPort: host}}}
	}
	for _, tt := range []struct {
		name   string
		given  container.HostConfig
		wants  string // published
		dns    string
		search string
	}{
		{"as it is", container.HostConfig{}, "53/udp=53 8080/tcp=8080", "198.18.0.2", "tel2-search"},
		{"the user's port", container.HostConfig{PortBindings: bind("3000/tcp", "8080")}, "3000/tcp=8080 53/udp=53", "198.18.0.2", "tel2-search"},
		{"another protocol's", container.HostConfig{PortBindings: bind("8080/udp", "8080")}, "53/udp=53 8080/tcp=8080 8080/udp=8080", "198.18.0.2", "tel2-search"},
		{"the user's names", container.HostConfig{DNS: []string{"192.0.2.1"}, DNSSearch: []string{"x"}}, "53/udp=53 8080/tcp=8080", "192.0.2.1", "x"},
		{"the machine's network", container.HostConfig{NetworkMode: "host"}, "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := onMachinePlan(t, tt.given)
			if err != nil {
				t.Fatal(err)
			}
			p.onMachine("198.18.0.2", ports)
			var has []string
			for port, bindings := range p.Host.PortBindings {
				for _, b := range bindings {
					has = append(has, string(port)+"="+b.HostPort)
					if b.HostIP != "127.0.0.1" {
						t.Errorf("%s is published to all the world: %+v", port, b)
					}
				}
			}
			slices.Sort(has)
			if got := strings.Join(has, " "); got != tt.wants {
				t.Errorf("published %q, want %q", got, tt.wants)
			}
			if dns, search := strings.Join(p.Host.DNS, " "), strings.Join(p.Host.DNSSearch, " "); dns != tt.dns || search != tt.search {
				t.Errorf("names by %q, %q; want %q, %q", dns, search, tt.dns, tt.search)
			}
			if !p.Host.AutoRemove {
				t.Error("it stays when it has ended")
			}
		})
	}
}

func TestRefusedOnMachine(t *testing.T) {
	for flag, given := range map[string]container.HostConfig{
		"--network none":       {NetworkMode: "none"},
		"--network container:": {NetworkMode: "container:x"},
		"--restart":            {RestartPolicy: container.RestartPolicy{Name: "always"}},
	} {
		if _, err := onMachinePlan(t, given); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), flag+" cannot be used") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err := onMachinePlan(t, container.HostConfig{ExtraHosts: []string{"a:1.2.3.4"}}); err != nil {
		t.Error("what only a shared network forbids is refused:", err)
	}
}

// A port that somebody has is told before the cluster is touched.
func TestPortsOfMachineFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := uint16(l.Addr().(*net.TCPAddr).Port)
	p, err := onMachinePlan(t, container.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ports := []event.Port{{Container: 80, Handler: taken, Protocol: "TCP"}}
	if err := p.portsOfMachineFree(t.Context(), ports); fault.CodeOf(err) != fault.AlreadyExists || !strings.Contains(fault.From(err).Hint, strconv.Itoa(int(taken))) {
		t.Error(err)
	}
	ports[0].Protocol = "UDP"
	if err := p.portsOfMachineFree(t.Context(), ports); err != nil {
		t.Error("another protocol's:", err)
	}
}
