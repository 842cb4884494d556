package engagements

import (
	"testing"

	"berth.dev/bus/event"
)

func TestTranslate(t *testing.T) {
	virtual := []event.VirtualSubnet{{Cluster: "10.96.0.0/12", Here: "240.96.0.0/12"}, {Cluster: "fd00:10:96::/112", Here: "fd57:6272:7600::/112"}}
	for in, want := range map[string]string{
		"KUBERNETES_SERVICE_HOST=10.96.0.1":           "KUBERNETES_SERVICE_HOST=240.96.0.1",
		"KUBERNETES_PORT=tcp://10.96.0.1:443":         "KUBERNETES_PORT=tcp://240.96.0.1:443",
		"HOSTS=10.100.2.3:80,10.244.0.1:80;10.96.0.2": "HOSTS=240.100.2.3:80,10.244.0.1:80;240.96.0.2",
		"V6=fd00:10:96::1":                            "V6=fd57:6272:7600::1",
		"URL=http://[fd00:10:96::1]:80/x=10.96.0.1":   "URL=http://[fd57:6272:7600::1]:80/x=240.96.0.1",
		"NET=10.96.0.0/12":                            "NET=240.96.0.0/12",
		"VERSION=1.10.96.0.1":                         "VERSION=1.10.96.0.1",
		"NAME=v10.96.0.1-rc":                          "NAME=v10.96.0.1-rc",
		"EMPTY=":                                      "EMPTY=",
		"BINARY=\x00\xff10.96.0.1\xfe\n":              "BINARY=\x00\xff240.96.0.1\xfe\n",
		"10.96.0.1=name":                              "10.96.0.1=name",
		"MAIL=me@10.96.0.1":                           "MAIL=me@240.96.0.1",
	} {
		if got := translateEnv([][]byte{[]byte(in)}, virtual); string(got[0]) != want {
			t.Errorf("%q: %q, want %q", in, got[0], want)
		}
	}
	if got := translateEnv([][]byte{[]byte("A=10.96.0.1")}, nil); string(got[0]) != "A=10.96.0.1" {
		t.Errorf("without virtual addresses: %q", got[0])
	}
}
