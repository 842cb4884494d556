package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHasSysResource(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tnoded\nCapBnd:\t000001ffffffffff\n": true,
		"Name:\tnoded\nCapBnd:\t000001fffeffffff\n": false,
		"Name:\tnoded\n": false,
	} {
		if got := hasSysResource(status); got != want {
			t.Errorf("hasSysResource(%q) = %v", status, got)
		}
	}
}

// The filter takes one capability out and leaves everything else as it was,
// numbers beyond a float64's precision included.
func TestRuncFilterEditsTheBundle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	const limit = "9223372036854771712"
	bundle := `{"linux":{"resources":{"memory":{"limit":` + limit + `}}},
		"process":{"args":["x"],"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]}}}`
	if err := os.WriteFile(path, []byte(bundle), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := editJSON(path, func(spec map[string]any) { dropSysResource(spec["process"].(map[string]any)) }); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	if strings.Contains(text, "SYS_RESOURCE") || !strings.Contains(text, "CAP_CHOWN") || !strings.Contains(text, limit) {
		t.Errorf("the bundle became %s", text)
	}
}

func TestCNIConfigIsJSON(t *testing.T) {
	single := node{name: "n", ip4: netip.MustParseAddr("10.231.0.231")}
	dual := single
	dual.ip6 = netip.MustParseAddr("fd00:10:231::e7")
	for n, ranges := range map[node]int{single: 1, dual: 2} {
		var config struct {
			Plugins []struct {
				IPAM struct{ Ranges [][]struct{ Subnet string } }
			}
		}
		if err := json.Unmarshal([]byte(cniConfig(n)), &config); err != nil {
			t.Fatal(err)
		}
		if got := len(config.Plugins[0].IPAM.Ranges); got != ranges {
			t.Errorf("%d ranges, want %d", got, ranges)
		}
	}
}

func TestAddressesOfAFormerRunAreNotTheNodes(t *testing.T) {
	for ip, want := range map[string]bool{"10.244.0.1": true, "fd00:10:244::1": true, "10.96.0.10": true, "10.231.0.231": false} {
		if got := inCluster(netip.MustParseAddr(ip)); got != want {
			t.Errorf("inCluster(%s) = %v", ip, got)
		}
	}
}
