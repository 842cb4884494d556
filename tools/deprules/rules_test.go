// Package deprules holds the rules on who may import what, as a test. Each rule
// has its reason; a rule that stands in the way is to be changed here, with a
// better reason, and not to be worked around.
package deprules

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rule: packages below an Only prefix may import Pkg (and what is below it);
// all others may not.
type rule struct {
	Pkg    string
	Only   []string
	Reason string
}

var rules = []rule{
	{"k8s.io/client-go", []string{"berth.dev/services/connector", "berth.dev/services/manager", "berth.dev/tunnel/apidial", "berth.dev/services/vif/internal/tunnelclient", "berth.dev/ctl/internal/kubeconfig", "berth.dev/e2e", "berth.dev/bench"},
		"the cluster is reached by connector and manager; ctl reads kubeconfig files with clientcmd rather than with a parser of its own; vif turns one into a rest.Config for the tunnel's dialer"},
	{"github.com/docker/docker", []string{"berth.dev/services/runner", "berth.dev/services/builder", "berth.dev/ctl/internal", "berth.dev/e2e", "berth.dev/bench"},
		"runner and builder own what happens on the engine; ctl starts the workspace and attaches terminals"},
	{"github.com/docker/cli", []string{"berth.dev/ctl/internal", "berth.dev/e2e"},
		"docker/cli's run command is deprecated upstream: kept where it can be replaced"},
	{"golang.zx2c4.com/wireguard", []string{"berth.dev/services/vif"}, "TUN is vif's"},
	{"gvisor.dev/gvisor", []string{"berth.dev/services/vif"}, "netstack is vif's"},
	{"github.com/miekg/dns", []string{"berth.dev/services/vif", "berth.dev/e2e", "berth.dev/bench"}, "DNS is vif's; the manager passes messages on unread"},
	{"github.com/godbus/dbus", []string{"berth.dev/services/vif/internal/resolved"}, "systemd-resolved is the one service of a machine that Berth speaks to"},
	{"github.com/hanwen/go-fuse", []string{"berth.dev/services/telemount"}, "FUSE is telemount's"},
	{"github.com/nats-io/nats-server", []string{"berth.dev/bus/embed", "berth.dev/bus/bustest"}, "the server costs 17 MB of binary: only connector links it"},
	{"github.com/nats-io", []string{"berth.dev/bus"}, "only package bus speaks NATS, so that subjects and identities have one owner"},
	{"github.com/moby/buildkit", []string{"berth.dev/services/builder"}, "BuildKit's client is builder's; ctl streams the context and reads facts"},
	{"berth.dev/files", []string{"berth.dev/files", "berth.dev/services/telemount", "berth.dev/services/agent", "berth.dev/services/vif/internal/door", "berth.dev/services/connector/internal/link"},
		"the file protocol has two ends, telemount and the agent; vif's door knows what telemount calls there, and connector reads single files"},
	{"berth.dev/services", []string{"berth.dev/services", "berth.dev/e2e"}, "nothing imports a service"},
	{"berth.dev/tunnel", []string{"berth.dev/tunnel", "berth.dev/services/vif", "berth.dev/services/connector", "berth.dev/services/manager", "berth.dev/services/agent", "berth.dev/services/telemount", "berth.dev/services/runner/internal/volplugin", "berth.dev/e2e", "berth.dev/bench"},
		"ctl and the Docker side have no business across the cluster boundary; runner only makes the volume plugin's key"},
	{"berth.dev/bus", []string{"berth.dev/bus", "berth.dev/ctl", "berth.dev/services/connector", "berth.dev/services/vif", "berth.dev/services/builder", "berth.dev/services/runner", "berth.dev/services/telemount", "berth.dev/e2e", "berth.dev/examples/automation", "berth.dev/bench"},
		"the bus does not reach into the cluster: manager and agent know nothing of it"},
}

// pureBus: what package bus itself may import beside the standard library.
var pureBus = []string{"berth.dev/bus", "github.com/nats-io/"}

func below(pkg, prefix string) bool {
	return pkg == prefix || strings.HasPrefix(pkg, strings.TrimSuffix(prefix, "/")+"/")
}

func TestRules(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	modules := modulesOf(t, root)
	if len(modules) < 10 {
		t.Fatalf("found only %d modules below %s: %v", len(modules), root, modules)
	}
	for _, dir := range modules {
		for _, p := range list(t, dir) {
			for _, imp := range p.Imports {
				check(t, p.ImportPath, imp)
			}
		}
	}
}

func check(t *testing.T, pkg, imp string) {
	t.Helper()
	for _, r := range rules {
		if !below(imp, r.Pkg) || below(pkg, r.Pkg) {
			continue
		}
		ok := false
		for _, o := range r.Only {
			ok = ok || below(pkg, o)
		}
		if !ok {
			t.Errorf("%s imports %s: %s", pkg, imp, r.Reason)
		}
	}
	if below(pkg, "berth.dev/services") && below(imp, "berth.dev/services") {
		if service(pkg) != service(imp) {
			t.Errorf("%s imports %s: services speak over the bus or the tunnel, never by import", pkg, imp)
		}
	}
	if below(pkg, "berth.dev/bus") && !below(pkg, "berth.dev/bus/internal") && !below(pkg, "berth.dev/bus/embed") && !below(pkg, "berth.dev/bus/bustest") && strings.Contains(strings.Split(imp, "/")[0], ".") {
		ok := false
		for _, p := range pureBus {
			ok = ok || strings.HasPrefix(imp, p)
		}
		if !ok {
			t.Errorf("%s imports %s: the contract that all share depends on the standard library and the NATS client only", pkg, imp)
		}
	}
}

func service(pkg string) string { return strings.Split(pkg, "/")[2] }

// modulesOf are the folders that go.work uses.
func modulesOf(t *testing.T, root string) []string {
	t.Helper()
	out, err := exec.Command("go", "work", "edit", "-json", filepath.Join(root, "go.work")).Output()
	if err != nil {
		t.Fatalf("read go.work: %v", err)
	}
	var w struct{ Use []struct{ DiskPath string } }
	if err := json.Unmarshal(out, &w); err != nil {
		t.Fatalf("parse go.work: %v", err)
	}
	var dirs []string
	for _, u := range w.Use {
		dirs = append(dirs, filepath.Join(root, u.DiskPath))
	}
	return dirs
}

type pkg struct {
	ImportPath string
	Imports    []string
}

// list are the packages of the module in dir with what they import, tests aside.
func list(t *testing.T, dir string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v\n%s", dir, err, stderr.String())
	}
	var pkgs []pkg
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("parse go list in %s: %v", dir, err)
		}
		pkgs = append(pkgs, p)
	}
}
