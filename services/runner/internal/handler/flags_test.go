package handler

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
)

// given is what Docker's command line (28.2) sends for `docker run img a b`,
// captured from its request, with changes on top.
func given(config, host, nets string) command.Handler {
	merge := func(base, change string) json.RawMessage {
		m := map[string]any{}
		for _, s := range []string{base, change} {
			if s != "" {
				if err := json.Unmarshal([]byte(s), &m); err != nil {
					panic(err)
				}
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			panic(err)
		}
		return b
	}
	return command.Handler{
		Config: merge(`{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,"Tty":false,"OpenStdin":false,"StdinOnce":false,
			"Env":null,"Cmd":["a","b"],"Image":"img","Volumes":{},"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{}}`, config),
		HostConfig: merge(`{"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"default","PortBindings":{},
			"RestartPolicy":{"Name":"no","MaximumRetryCount":0},"AutoRemove":false,"Dns":[],"DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"Links":null,
			"MemorySwappiness":-1,"PublishAllPorts":false}`, host),
		Networking: merge(`{"EndpointsConfig":{"default":{"IPAMConfig":null,"Links":null,"Aliases":null,"MacAddress":"","DriverOpts":null}}}`, nets),
	}
}

func TestFlags(t *testing.T) {
	tried := map[string]bool{}
	for _, x := range []struct {
		name, config, host, nets string
		refused                  []string // flags; none: accepted
	}{
		{name: "nothing given"},
		{name: "harmless", config: `{"Tty":true,"OpenStdin":true,"User":"1000","Env":["A=1"]}`, host: `{"Memory":1000000,"AutoRemove":true,"Binds":["/a:/b"],"NetworkMode":""}`},
		{name: "-p 8080:80", config: `{"ExposedPorts":{"80/tcp":{}}}`, host: `{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}}`},
		{name: "-P", host: `{"PublishAllPorts":true}`},
		{name: "--expose 9", config: `{"ExposedPorts":{"9/tcp":{}}}`},
		{name: "--network host", host: `{"NetworkMode":"host"}`, nets: `{"EndpointsConfig":{"host":{}}}`, refused: []string{"--network host"}},
		{name: "--network none", host: `{"NetworkMode":"none"}`, nets: `{"EndpointsConfig":{"none":{}}}`, refused: []string{"--network none"}},
		{name: "--network container:x", host: `{"NetworkMode":"container:x"}`, nets: `{"EndpointsConfig":{"container:x":{}}}`, refused: []string{"--network container:"}},
		{name: "--network foo --network-alias bar --ip 10.0.0.2", host: `{"NetworkMode":"foo"}`, nets: `{"EndpointsConfig":{"default":null,"foo":{"Aliases":["bar"],"IPAMConfig":{"IPv4Address":"10.0.0.2"}}}}`},
		{name: "two networks", host: `{"NetworkMode":"foo"}`, nets: `{"EndpointsConfig":{"default":null,"foo":{},"bar":{}}}`},
		{name: "--network name=foo,gw-priority=1", host: `{"NetworkMode":"foo"}`, nets: `{"EndpointsConfig":{"foo":{"GwPriority":1}}}`, refused: []string{"--network gw-priority="}},
		{name: "--network foo --mac-address", config: `{"MacAddress":"02:42:ac:11:00:02"}`, host: `{"NetworkMode":"foo"}`, nets: `{"EndpointsConfig":{"foo":{"MacAddress":"02:42:ac:11:00:02"}}}`},
		{name: "--network foo --link db", host: `{"NetworkMode":"foo","Links":["db"]}`, nets: `{"EndpointsConfig":{"foo":{"Links":["db"]}}}`},
		{name: "--network-alias", nets: `{"EndpointsConfig":{"default":{"Aliases":["bar"]}}}`, refused: []string{"--network-alias"}},
		{name: "--ip and --ip6", nets: `{"EndpointsConfig":{"default":{"IPAMConfig":{"IPv4Address":"10.0.0.2","IPv6Address":"fd00::2"}}}}`, refused: []string{"--ip", "--ip6"}},
		{name: "--link-local-ip", nets: `{"EndpointsConfig":{"default":{"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}}}}`, refused: []string{"--link-local-ip"}},
		{name: "--hostname", config: `{"Hostname":"h"}`, refused: []string{"--hostname"}},
		{name: "--domainname", config: `{"Domainname":"d"}`, refused: []string{"--domainname"}},
		{name: "--dns, all three", host: `{"Dns":["1.1.1.1"],"DnsSearch":["x"],"DnsOptions":["ndots:1"]}`, refused: []string{"--dns", "--dns-search", "--dns-option"}},
		{name: "--add-host", host: `{"ExtraHosts":["a:1.2.3.4"]}`, refused: []string{"--add-host"}},
		{name: "--mac-address", nets: `{"EndpointsConfig":{"default":{"MacAddress":"02:42:ac:11:00:02"}}}`, refused: []string{"--mac-address"}},
		{name: "--mac-address, older", config: `{"MacAddress":"02:42:ac:11:00:02"}`, refused: []string{"--mac-address"}},
		{name: "--link", host: `{"Links":["a:b"]}`, refused: []string{"--link"}},
		{name: "--restart always", host: `{"RestartPolicy":{"Name":"always"}}`, refused: []string{"--restart"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := NewPlan(given(x.config, x.host, x.nets), "auto")
			if len(x.refused) == 0 {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Fatalf("%v, want invalid_argument", err)
			}
			var named []string
			for _, part := range strings.Split(err.Error(), "; ") {
				flag, why, ok := strings.Cut(part, " cannot be used here: ")
				if !ok || why == "" {
					t.Errorf("no reason in %q", part)
				}
				named = append(named, flag)
				tried[flag] = tried[flag] || slices.ContainsFunc(refusals(), func(r refusal) bool { return r.flag == flag && r.why == why })
			}
			if !slices.Equal(named, x.refused) {
				t.Errorf("names %q, want %q", named, x.refused)
			}
		})
	}
	for _, r := range refusals() {
		if !tried[r.flag] {
			t.Errorf("%s is in the table of what is refused, and its message is not tried", r.flag)
		}
	}
}

func TestJoinLeavesNothingThatTheEngineRefuses(t *testing.T) {
	p, err := NewPlan(given("", `{"RestartPolicy":{"Name":"no"},"NetworkMode":"foo","Links":["db"],"PublishAllPorts":true,"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`, `{"EndpointsConfig":{"foo":{"Aliases":["a"]},"bar":{}}}`), "intercept-web/app-80")
	if err != nil {
		t.Fatal(err)
	}
	p.Join("abc")
	if p.Name != "intercept-web-app-80" || !p.Host.AutoRemove || p.Host.NetworkMode != "container:abc" || p.Host.PortBindings != nil || p.Config.ExposedPorts != nil || p.Host.PublishAllPorts || p.Host.Links != nil {
		t.Errorf("plan %+v %+v", p, p.Host)
	}
	if len(p.Publish) != 1 || !p.PublishAll || len(p.Networks) != 2 || p.Networks["foo"] == nil {
		t.Errorf("what is to be done beside the network was lost: %+v", p)
	}
}

func TestMergeEnv(t *testing.T) {
	remote := [][]byte{[]byte("A=1"), []byte("B=two\nlines"), []byte("C="), []byte("BIN=\xff\xfe"), []byte("U=x")}
	got, err := mergeEnv(remote, []string{"A=mine", "BIN=mine", "U"})
	if want := []string{"B=two\nlines", "C=", "A=mine", "BIN=mine", "U"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	_, err = mergeEnv(remote, nil)
	if err == nil || !strings.Contains(err.Error(), "BIN") || strings.Contains(err.Error(), "\xff") {
		t.Errorf("bytes that are not UTF-8: %v", err)
	}
	if _, err := mergeEnv([][]byte{[]byte("SECRETVALUE")}, nil); err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("an entry without a key: %v", err)
	}
}

func TestMountsGiveWayToTheUsers(t *testing.T) {
	p := &Plan{Config: &container.Config{Volumes: map[string]struct{}{"/anon": {}}}, Host: &container.HostConfig{Binds: []string{"/src:/bind/:ro", "/only"}, Tmpfs: map[string]string{"/tmp": ""}}}
	kept := p.addMounts([]command.Mount{{Volume: "a", Path: "/bind"}, {Volume: "b", Path: "/anon"}, {Volume: "c", Path: "/tmp/"}, {Volume: "d", Path: "/data", ReadOnly: true}, {Volume: "e", Path: "/data/"}})
	if len(kept) != 1 || kept[0].Volume != "d" || len(p.Host.Mounts) != 1 || p.Host.Mounts[0].Target != "/data" || !p.Host.Mounts[0].ReadOnly {
		t.Errorf("kept %+v, mounted %+v", kept, p.Host.Mounts)
	}
}

func TestPorts(t *testing.T) {
	ports := []event.Port{{Container: 80, Handler: 8080, Protocol: "TCP"}, {Container: 53, Protocol: "UDP"}}
	if l := portLabel(ports); l != "8080/TCP,53/UDP" {
		t.Errorf("label %q", l)
	} else if back := readPorts(l); portLabel(back) != l {
		t.Errorf("read back %+v", back)
	}
	for _, x := range []struct {
		p     event.Port
		clash bool
	}{
		{event.Port{Container: 8080, Protocol: "TCP"}, true},
		{event.Port{Container: 8080, Protocol: "UDP"}, false},
		{event.Port{Container: 80, Protocol: "TCP"}, false},
		{event.Port{Container: 1, Handler: 53, Protocol: "UDP"}, true},
	} {
		if _, clash := samePort(ports, []event.Port{x.p}); clash != x.clash {
			t.Errorf("%+v clashes: %v", x.p, clash)
		}
	}
	if readPorts("") != nil {
		t.Error("no label, some ports")
	}
}
