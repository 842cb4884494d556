package apidial

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"berth.dev/tunnel"
	"k8s.io/client-go/tools/clientcmd"
)

// TestRealCluster reaches a manager in the cluster of BERTH_TEST_KUBECONFIG by
// every transport. The inner TLS handshake with a made-up pin proves that bytes
// go both ways, and needs no rights at the manager.
func TestRealCluster(t *testing.T) {
	path := os.Getenv("BERTH_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("BERTH_TEST_KUBECONFIG is not set: needs a cluster with a manager (BERTH_TEST_SELECTOR, BERTH_TEST_PORT)")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(os.Getenv("BERTH_TEST_PORT"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, transport := range []Transport{PodsProxy, PortForwardWebSocket, PortForwardSPDY} {
		t.Run(string(transport), func(t *testing.T) {
			d := &Dialer{Config: config, Namespace: "berth", Selector: os.Getenv("BERTH_TEST_SELECTOR"), Port: port, Only: transport}
			conn, _, err := d.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = tunnel.Dial(t.Context(), conn, id, "made-up", tunnel.Hello{Role: "test"}, tunnel.Config{})
			var pin *tunnel.PinError
			if !errors.As(err, &pin) || len(pin.Got) != 43 {
				t.Errorf("got %v, want the manager's pin", err)
			}
		})
	}
}
