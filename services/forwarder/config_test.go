package main

import (
	"strings"
	"testing"

	"berth.dev/services/forwarder/internal/port"
)

func TestParse(t *testing.T) {
	c, err := parse([]string{"back", "--ports", "80/tcp,53/udp,53/tcp", "--check"})
	if err != nil || port.Join(c.ports) != "80/tcp,53/udp,53/tcp" || !c.check || c.part != "back" {
		t.Errorf("%+v, %v", c, err)
	}
	for args, says := range map[string]string{
		"":                                 "which part",
		"--ports 80/tcp":                   "which part",
		"side --ports 80/tcp":              `"side"`,
		"front":                            "no port",
		"front --ports 80":                 `"80"`,
		"front --ports 0/tcp":              `"0/tcp"`,
		"front --ports 80/sctp":            `"80/sctp"`,
		"front --ports 65536/tcp":          `"65536/tcp"`,
		"front --ports 80/tcp,80/tcp":      "twice",
		"front --ports 80/tcp more":        `"more"`,
		"back --ports 1/udp --udp-idle 0s": "no time",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", args, err, says)
		}
	}
}
