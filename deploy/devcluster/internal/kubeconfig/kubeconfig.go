// Package kubeconfig renders and writes the one kind of kubeconfig this cluster
// has: a server, its authority and a client certificate, all in one file, so
// that it can be copied anywhere.
package kubeconfig

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"berth.dev/deploy/devcluster/internal/pki"
)

// Config is one cluster as one user.
type Config struct {
	Name   string // of the cluster and the context
	Server string // URL
	CA     []byte // PEM
	Client pki.Pair
}

// Bytes is the YAML file.
func (c Config) Bytes() []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: %[1]s
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[1]s-admin
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: %[1]s
  context:
    cluster: %[1]s
    user: %[1]s-admin
`, c.Name, c.Server, b64(c.CA), b64(c.Client.Cert), b64(c.Client.Key))
}

// Write puts a kubeconfig at path, readable by its owner only. It replaces the
// file in one step: a kubectl that reads meanwhile sees the old one or the new.
func Write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(content); err != nil {
		f.Close()
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
