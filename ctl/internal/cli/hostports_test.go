package cli

import (
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/lease"
)

func TestHostPorts(t *testing.T) {
	for _, tt := range []struct {
		kind                 lease.Kind
		port, wants, publish string
	}{
		{lease.Intercept, "8080", "8080", ""},
		{lease.Intercept, "8080:80", "8080", "-p 127.0.0.1:8080:80"},
		{lease.Intercept, "8080:http", "8080:http", ""},
		{lease.Intercept, "8080:80:http", "8080:http", "-p 127.0.0.1:8080:80"},
		{lease.Intercept, "5353:53:dns/UDP", "5353:dns/UDP", "-p 127.0.0.1:5353:53/udp"},
		{lease.Intercept, "8080:8080:80", "8080:80", ""},
		{lease.Replace, "8080:80", "8080:80", "-p 127.0.0.1:8080:80"},
		{lease.Replace, "8080:80:3000", "8080:3000", "-p 127.0.0.1:8080:80"},
	} {
		ports, publish, err := hostPorts(tt.kind, []string{tt.port})
		if err != nil || !slices.Equal(ports, []string{tt.wants}) || strings.Join(publish, " ") != tt.publish {
			t.Errorf("%s --port %s: %v %v %v, want %q %q", tt.kind, tt.port, ports, publish, err, tt.wants, tt.publish)
		}
	}
	for _, bad := range []string{"http", "1:2:3:4", "80:x:http", "0", "70000"} {
		if _, _, err := hostPorts(lease.Intercept, []string{bad}); fault.CodeOf(err) != fault.InvalidArgument || fault.From(err).Hint == "" {
			t.Errorf("--port %s: %v", bad, err)
		}
	}
}
