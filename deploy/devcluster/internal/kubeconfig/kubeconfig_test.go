package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/deploy/devcluster/internal/pki"
)

func TestBytes(t *testing.T) {
	c := Config{Name: "dev", Server: "https://127.0.0.1:16443", CA: []byte("ca"), Client: pki.Pair{Cert: []byte("cert"), Key: []byte("key")}}
	text := string(c.Bytes())
	for _, want := range []string{
		"current-context: dev\n", "    server: https://127.0.0.1:16443\n",
		"certificate-authority-data: Y2E=\n", "client-certificate-data: Y2VydA==\n", "client-key-data: a2V5\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

func TestWriteIsPrivateAndReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "kubeconfig")
	for _, content := range []string{"first, and longer", "second"} {
		if err := Write(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v", got, err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	files, _ := os.ReadDir(filepath.Dir(path))
	if len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}
