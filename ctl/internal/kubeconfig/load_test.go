package kubeconfig

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// What is sent holds one context, no path and no program.
func TestGolden(t *testing.T) {
	for _, name := range []string{"files", "token-file", "plugin", "oidc", "anonymous"} {
		t.Run(name, func(t *testing.T) {
			target, err := Load(t.Context(), Options{File: filepath.Join("testdata", name+".yaml")})
			if err != nil {
				t.Fatal(err)
			}
			raw, err := target.JSON()
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, raw, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			golden := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), want)
			}
			for _, bad := range []string{"testdata", "exec\"", "tokenFile", "auth-provider", "other"} {
				if bytes.Contains(raw, []byte(bad)) {
					t.Errorf("%q is left in it", bad)
				}
			}
		})
	}
}

func TestPlugin(t *testing.T) {
	target, err := Load(t.Context(), Options{File: "testdata/plugin.yaml", Namespace: "elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC); !target.Expires.Equal(want) {
		t.Errorf("expires %v, want %v", target.Expires, want)
	}
	// It is told the cluster, and its environment; see testdata/plugin.yaml.
	if got := target.user().Token; got != "seen-https://192.0.2.1-given" {
		t.Errorf("token %q", got)
	}
	if target.Namespace != "elsewhere" || target.Context != "here" {
		t.Errorf("target %+v", target)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		file, context string
		code          fault.Code
		says          string
	}{
		{"files.yaml", "nope", fault.NotFound, "there are: here, other"},
		{"missing.yaml", "", fault.NotFound, "missing.yaml"},
		{"broken.yaml", "", fault.FailedPrecondition, "read the kubeconfig"},
		{"no-ca.yaml", "", fault.FailedPrecondition, "does-not-exist.pem"},
		{"plugin-fails.yaml", "", fault.FailedPrecondition, "token has expired, log in"},
		{"plugin-nonsense.yaml", "", fault.FailedPrecondition, "did not answer with an ExecCredential"},
	} {
		_, err := Load(t.Context(), Options{File: filepath.Join("testdata", c.file), Context: c.context})
		f := fault.From(err)
		if f == nil || f.Code != c.code || f.Stage != Stage || !strings.Contains(f.Message, c.says) {
			t.Errorf("%s: got %+v, want %s with %q", c.file, f, c.code, c.says)
		}
	}
}
