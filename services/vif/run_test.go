package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/bustest"
	"berth.dev/bus/event"
	"berth.dev/services/vif/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// The process itself: from its files to VIFStarted, and its end.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	b := bustest.Start(t)
	raw, err := json.Marshal(b.VIF("c1"))
	if err != nil {
		t.Fatal(err)
	}
	busConfig, resolv := filepath.Join(dir, "bus.json"), filepath.Join(dir, "resolv.conf")
	// As a vif that was killed leaves it.
	left := "nameserver 198.18.0.2\n#berth-original# nameserver 127.0.0.11\n"
	for name, content := range map[string]string{busConfig: string(raw), resolv: left} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-connection", "c1", "-bus-config", busConfig, "-resolv-conf", resolv})
	}()
	if f := bustest.Wait[event.VIFStarted](t, b.Tester(), "c1"); f.Pin == "" || f.Version != version {
		t.Errorf("%+v", f)
	}
	if data, _ := os.ReadFile(resolv); string(data) != "nameserver 127.0.0.11\n" {
		t.Errorf("resolv.conf is not recovered: %q", data)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(bustest.Patience):
		t.Error("not ended")
	}
}

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                        "-connection",
		"-connection NO":          "-connection",
		"-connection c1 -mtu 100": "-mtu",
		"-connection c1 extra":    "extra",
		"-connection c1 -bus-config /no/such/file": "identity",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error about %s", args, err, want)
		}
	}
}
