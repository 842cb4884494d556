package identity

import (
	"encoding/json"
	"testing"

	"berth.dev/lease"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestKeyIsMadeOnce(t *testing.T) {
	c := fake.NewClientset()
	first, err := Load(t.Context(), c, "berth")
	if err != nil {
		t.Fatal(err)
	}
	second, err := Load(t.Context(), c, "berth")
	if err != nil || first.Pin() != second.Pin() {
		t.Fatalf("pin %s, then %s, %v", first.Pin(), second.Pin(), err)
	}
}

func TestPublishFollowsChanges(t *testing.T) {
	c := fake.NewClientset()
	for _, webhook := range []string{"ok", "unreachable"} {
		if err := Publish(t.Context(), c, "berth", lease.Info{Version: "1", Pin: "p", Webhook: webhook}); err != nil {
			t.Fatal(err)
		}
		cm, err := c.CoreV1().ConfigMaps("berth").Get(t.Context(), lease.InfoConfigMap, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got lease.Info
		if err := json.Unmarshal([]byte(cm.Data[lease.InfoKey]), &got); err != nil || got.Webhook != webhook {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}
