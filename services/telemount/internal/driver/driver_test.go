package driver

import (
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"berth.dev/services/telemount/internal/volume"
)

// TestCalls goes through Docker's calls; the volume's server is away.
func TestCalls(t *testing.T) {
	dir := t.TempDir()
	open := func() *volume.Set {
		vs, err := volume.Open(dir, dir+"/state.json", nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return vs
	}
	vs := open()
	if err := os.WriteFile(dir+"/token", []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(path, body string) map[string]any {
		t.Helper()
		w := httptest.NewRecorder()
		New(vs, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
		var m map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v in %s", path, err, w.Body)
		}
		return m
	}
	create := func(name, opts string) string {
		return call("/VolumeDriver.Create", `{"Name":"`+name+`","Opts":`+opts+`}`)["Err"].(string)
	}
	good := `{"server":"127.0.0.1:1","token-file":"` + dir + `/token","path":"/data","ro":"true"}`
	if m := call("/Plugin.Activate", ""); m["Implements"].([]any)[0] != "VolumeDriver" {
		t.Error(m)
	}
	for _, x := range []struct{ name, opts, want string }{
		{"v", good, ""},
		{"v", good, ""},
		{"v", strings.Replace(good, "/data", "/other", 1), "other options"},
		{"../v", good, "no name"},
		{"w", strings.Replace(good, `"ro"`, `"colour"`, 1), "unknown option"},
		{"w", strings.Replace(good, "/data", "/data/../etc", 1), "clean"},
		{"w", strings.Replace(good, "/data", "data", 1), "absolute"},
		{"w", `{"path":"/data"}`, "engagement"},
		{"w", `{"path":"/data","engagement":"e","door":"127.0.0.1:1"}`, "go together"},
		{"w", `{"path":"/data","engagement":"e","door":"host:1","pin":"p"}`, "IP:port"},
		{"w", strings.Replace(good, `"ro":"true"`, `"door":"127.0.0.1:1"`, 1), "go together"},
		{"w", strings.Replace(good, `"ro":"true"`, `"ro":"perhaps"`, 1), "ro="},
		{"w", strings.Replace(good, `"ro":"true"`, `"timeout":"1ns"`, 1), "100ms"},
	} {
		if got := create(x.name, x.opts); x.want == "" && got != "" || !strings.Contains(got, x.want) {
			t.Errorf("create %s %s: %q, want %q", x.name, x.opts, got, x.want)
		}
	}
	if got := call("/VolumeDriver.Mount", `{"Name":"v","ID":"1"}`)["Err"].(string); !strings.Contains(got, "dial file server") {
		t.Errorf("mount: %q", got)
	}
	vs.Close()
	vs = open() // as after kill -9
	if m := call("/VolumeDriver.List", ""); len(m["Volumes"].([]any)) != 1 {
		t.Errorf("list after restart: %v", m)
	}
	// It was in use, says its state, when the process was killed.
	b, err := os.ReadFile(dir + "/state.json")
	if err != nil {
		t.Fatal(err)
	}
	trouble := func() any {
		v, _ := call("/VolumeDriver.Get", `{"Name":"v"}`)["Volume"].(map[string]any)
		return v["Status"]
	}
	if got := trouble(); got != nil {
		t.Errorf("a volume that nobody uses is in trouble: %v", got)
	}
	used := strings.Replace(string(b), `"spec"`, `"ids":{"1":true},"spec"`, 1)
	if err := os.WriteFile(dir+"/state.json", []byte(used), 0o600); err != nil {
		t.Fatal(err)
	}
	vs = open()
	if got, _ := trouble().(map[string]any); !strings.Contains(got["trouble"].(string), "restarted") {
		t.Errorf("docker volume inspect does not tell: %v", got)
	}
	if got := call("/VolumeDriver.Unmount", `{"Name":"v","ID":"1"}`)["Err"]; got != "" || trouble() != nil {
		t.Errorf("the last that had lost it has ended: %v, %v", got, trouble())
	}
	if b, _ := os.ReadFile(dir + "/state.json"); strings.Contains(string(b), "canary") {
		t.Error("the token is in the state")
	}
	for _, want := range []string{"", "no such volume: v"} {
		if got := call("/VolumeDriver.Remove", `{"Name":"v"}`)["Err"]; got != want {
			t.Errorf("remove: %q, want %q", got, want)
		}
	}
}
