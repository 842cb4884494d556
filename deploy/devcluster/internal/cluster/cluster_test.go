package cluster

import (
	"maps"
	"testing"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"demo":                    "docker.io/library/demo:latest",
		"demo:1":                  "docker.io/library/demo:1",
		"team/demo":               "docker.io/team/demo:latest",
		"localhost/demo:1":        "localhost/demo:1",
		"registry.test:5000/demo": "registry.test:5000/demo:latest",
		"registry.test/a/b:2":     "registry.test/a/b:2",
	} {
		if got := normalize(in); got != want {
			t.Errorf("normalize(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseImages(t *testing.T) {
	got := parseImages(`REF                         TYPE                TARGET      SIZE   PLATFORMS   LABELS
docker.io/library/demo:1    application/vnd...  sha256:aaa  1 MiB  linux/amd64 -
sha256:111                  application/vnd...  sha256:aaa  1 MiB  linux/amd64 -
docker.io/library/other:1   application/vnd...  sha256:bbb  1 MiB  linux/amd64 -
sha256:222                  application/vnd...  sha256:ccc  1 MiB  linux/amd64 -
`)
	want := map[tagged]bool{
		{"docker.io/library/demo:1", "sha256:aaa"}:  true,
		{"docker.io/library/demo:1", "sha256:111"}:  true,
		{"docker.io/library/other:1", "sha256:bbb"}: true,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestNodeAddresses(t *testing.T) {
	n, err := nodeAddresses([]string{"10.231.0.0/24", "fd00:10:231::/64"})
	if err != nil || n.ip4 != "10.231.0.231" || n.ip6 != "fd00:10:231::e7" {
		t.Errorf("got %+v, %v", n, err)
	}
	if _, err := nodeAddresses([]string{"fd00:10:231::/64"}); err == nil {
		t.Error("a network without IPv4 was accepted")
	}
}

func TestParseInspect(t *testing.T) {
	c, err := parseInspect(`[{"State":{"Running":false},"Config":{"Image":"berth-devcluster-node:1"},
		"HostConfig":{"PortBindings":{"6443/tcp":[{"HostIp":"127.0.0.1","HostPort":"16443"}]}}}]`)
	want := container{exists: true, image: "berth-devcluster-node:1", port: "16443"}
	if err != nil || c != want {
		t.Errorf("got %+v, %v", c, err)
	}
}
