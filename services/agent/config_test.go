package main

import (
	"fmt"
	"testing"

	"berth.dev/services/agent/internal/port"
)

func TestConfigureFromTheWebhooksEnvironment(t *testing.T) {
	for k, v := range map[string]string{
		"BERTH_AGENT_MANAGER": "10.96.0.77:8080,berth-manager.berth:8080", "BERTH_AGENT_PIN": "p", "BERTH_AGENT_ENGAGEMENT": "e",
		"BERTH_AGENT_PORTS": "8080/TCP,53/UDP", "BERTH_AGENT_MOUNTS": "/a:/b", "BERTH_AGENT_TOKEN_FILE": "/t", "BERTH_AGENT_LISTEN": ":9901", "BERTH_AGENT_GRACE": "7s",
	} {
		t.Setenv(k, v)
	}
	c, err := configure(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %v %v %s %s %v", c.managers, c.ports, c.mounts, c.tokenFile, c.listen, c.grace); got != "[10.96.0.77:8080 berth-manager.berth:8080] [8080/TCP 53/UDP] [/a /b] /t :9901 7s" {
		t.Error(got)
	}
	t.Setenv("BERTH_AGENT_BESIDE", `{"namespace":"n","pod":"p","name":"a","container":"c","divert":true}`)
	if _, err := configure(nil); err == nil {
		t.Error("in the place of a container and beside it")
	}
	t.Setenv("BERTH_AGENT_ENGAGEMENT", "")
	if c, err := configure(nil); err != nil || c.beside.Pod != "p" || !c.beside.Divert {
		t.Errorf("%+v, %v", c.beside, err)
	}
	t.Setenv("BERTH_AGENT_NAMED", "8080/TCP=15001")
	if c, err := configure(nil); err != nil || c.named[port.Port{Number: 8080, Protocol: "TCP"}] != 15001 {
		t.Errorf("%+v, %v", c.named, err)
	}
	for _, bad := range []string{"8080/TCP", "8080=1", "8080/TCP=0"} {
		t.Setenv("BERTH_AGENT_NAMED", bad)
		if _, err := configure(nil); err == nil {
			t.Errorf("accepted the name %q", bad)
		}
	}
	t.Setenv("BERTH_AGENT_NAMED", "")
	for _, bad := range []string{"0/TCP", "80", "80/SCTP", "99999/TCP"} {
		t.Setenv("BERTH_AGENT_PORTS", bad)
		if _, err := configure(nil); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}
