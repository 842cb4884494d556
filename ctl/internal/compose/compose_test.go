package compose

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/fault"
)

func all(context.Context, string) (bool, error) { return true, nil }

func none(context.Context, string) (bool, error) { return false, nil }

func TestShop(t *testing.T) {
	hs, err := Load(t.Context(), Options{Files: []string{"testdata/shop.yaml"}}, all)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"api": `intercept api --port=8080 --docker-build=/src/api --docker-build-opt=file=Dev --docker-build-opt=target=run --docker-build-opt=build-arg=A=1 --docker-build-opt=tag=api:dev -- --network=name=shop_back,alias=api IMAGE`,
		"web": `replace frontend --container=app --port=80:http --port=9000 --wait=healthy --docker-run -- --interactive --tty --name=shop-web --env=GREETING=hello_world --env=NONE= --entrypoint=/app --volume=shop_data:/data --volume=/etc/hosts:/hosts:ro --tmpfs=/run ` +
			`--publish=8080:80/tcp --publish=127.0.0.1:9000:9000/udp --publish=127.0.0.1:9001:9001/udp --publish=[::1]:81:81/tcp --publish=82/tcp --expose=83 --user=1000 --workdir=/src --cap-drop=ALL --init=true --memory=67108864 --cpus=0.5 --stop-timeout=3 ` +
			`--health-cmd=curl_-f_localhost --health-interval=2s --health-retries=3 --network=name=shop_back,alias=web,alias=www,ip=10.1.2.3 --network=name=shop_default,alias=web web:dev --fast serve --port 8080`,
	}
	if len(hs) != len(want) {
		t.Fatalf("%d handlers", len(hs))
	}
	for _, h := range hs {
		var words []string
		for _, a := range h.Args {
			words = append(words, strings.ReplaceAll(a, " ", "_"))
		}
		if got := strings.Join(words, " "); got != want[h.Service] {
			t.Errorf("%s:\ngot  %s\nwant %s", h.Service, got, want[h.Service])
		}
	}
	if n := strings.Join(hs[1].Notes, "; "); !strings.Contains(n, "restart") || !strings.Contains(n, "depends_on") {
		t.Errorf("notes %q", n)
	}
	one, err := Load(t.Context(), Options{Files: []string{"testdata/shop.yaml"}, Name: "other", Services: []string{"api"}}, all)
	if err != nil || len(one) != 1 || !strings.Contains(strings.Join(one[0].Args, " "), "name=other_back") {
		t.Errorf("%+v, %v", one, err)
	}
}

// The networks are docker compose's: one that is not there is told with what
// makes it, unless nobody but handlers is on the default one.
func TestNetworks(t *testing.T) {
	_, err := Load(t.Context(), Options{Files: []string{"testdata/shop.yaml"}, Services: []string{"web"}}, none)
	f := fault.From(err)
	if f == nil || f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, "shop_back") || f.Hint != "docker compose up -d db" {
		t.Errorf("%+v", f)
	}
	boom := errors.New("boom")
	_, err = Load(t.Context(), Options{Files: []string{"testdata/shop.yaml"}}, func(context.Context, string) (bool, error) { return false, boom })
	if !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	alone := write(t, "services: {web: {image: i, x-berth: {replace: w}}}")
	hs, err := Load(t.Context(), Options{Files: []string{alone}, Name: "p"}, none)
	if err != nil || strings.Join(hs[0].Args, " ") != "replace w --docker-run -- i" {
		t.Errorf("%+v, %v", hs, err)
	}
}

func write(t *testing.T, yaml string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRefused(t *testing.T) {
	for yaml, says := range map[string]string{
		"services: {db: {image: i}}":                                                           "no service of the project p has x-berth",
		"services: {a: {image: i, x-berth: web}}":                                              "is a map",
		"services: {a: {image: i, x-berth: {}}}":                                               "neither replace",
		"services: {a: {image: i, x-berth: {replace: a, ingest: b}}}":                          "one of replace",
		"services: {a: {image: i, x-berth: {replace: ''}}}":                                    "name of a workload",
		"services: {a: {image: i, x-berth: {replace: a, docker-run: true}}}":                   "docker-run is not for here",
		"services: {a: {image: i, x-berth: {replace: a, port: {b: c}}}}":                       "neither a value",
		"services: {a: {image: i, ulimits: {nofile: 9}, cgroup: host, x-berth: {replace: a}}}": "cannot be given cgroup, ulimits",
		"services: {a: {build: {context: ., ssh: [default]}, x-berth: {replace: a}}}":          "ssh",
		"services: {a: {image: i, healthcheck: {test: [CMD, a, b]}, x-berth: {replace: a}}}":   "line for the shell",
		"services: {a: {image: i, nonsense: 1, x-berth: {replace: a}}}":                        "nonsense",
	} {
		_, err := Load(t.Context(), Options{Files: []string{write(t, yaml)}, Name: "p"}, all)
		if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", yaml, err, says)
		}
	}
	for service, says := range map[string]string{"db": "docker compose's", "nobody": "no service nobody"} {
		_, err := Load(t.Context(), Options{Files: []string{"testdata/shop.yaml"}, Services: []string{service}}, all)
		if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", service, err)
		}
	}
}
