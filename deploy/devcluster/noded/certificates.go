package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth.dev/deploy/devcluster/internal/kubeconfig"
	"berth.dev/deploy/devcluster/internal/pki"
)

const clusterName = "berth-devcluster"

// adminURL is the apiserver as seen from inside the node.
const adminURL = "https://127.0.0.1:6443"

// prepareCertificates makes the authority and the service accounts' key once,
// and every other certificate anew at each start: they are cheap, and the
// node's addresses may have changed. The administrator's is kept, for the
// kubeconfigs that already hold it.
func prepareCertificates(n node) error {
	if err := os.MkdirAll(pkiDir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", pkiDir, err)
	}
	ca, err := authority()
	if err != nil {
		return err
	}
	if _, err := kept("service-accounts", pki.SigningKey); err != nil {
		return err
	}
	admin, err := kept("admin", func() (pki.Pair, error) {
		return ca.Sign(pki.Leaf{CommonName: "kubernetes-admin", Groups: []string{"system:masters"}})
	})
	if err != nil {
		return err
	}

	names := []string{"localhost", clusterName, n.name, "127.0.0.1", "::1", n.ip4.String(), apiserverIP4,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if n.dual() {
		names = append(names, n.ip6.String(), apiserverIP6)
	}
	nodeUser := "system:node:" + n.name
	for name, leaf := range map[string]pki.Leaf{
		"apiserver":         {CommonName: "kube-apiserver", Names: names},
		"apiserver-kubelet": {CommonName: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		"front-proxy":       {CommonName: "front-proxy-client"},
		"kubelet":           {CommonName: nodeUser, Groups: []string{"system:nodes"}, Names: []string{n.name, n.ip4.String(), "127.0.0.1"}},
		"controllers":       {CommonName: "system:kube-controller-manager"},
		"scheduler":         {CommonName: "system:kube-scheduler"},
		"proxy":             {CommonName: "system:kube-proxy"},
	} {
		pair, err := ca.Sign(leaf)
		if err != nil {
			return err
		}
		if err := store(name, pair); err != nil {
			return err
		}
		if err := storeKubeconfig(name, ca, pair); err != nil {
			return err
		}
	}
	return storeKubeconfig("admin", ca, admin)
}

func authority() (*pki.Authority, error) {
	pair, err := kept("ca", func() (pki.Pair, error) {
		ca, err := pki.New("berth-devcluster-ca")
		if err != nil {
			return pki.Pair{}, err
		}
		return ca.Pair, nil
	})
	if err != nil {
		return nil, err
	}
	return pki.Load(pair)
}

// kept returns the pair stored under name, making and storing it if there is none.
func kept(name string, issue func() (pki.Pair, error)) (pki.Pair, error) {
	cert, err1 := os.ReadFile(certFile(name))
	key, err2 := os.ReadFile(keyFile(name))
	if err := errors.Join(err1, err2); err == nil {
		return pki.Pair{Cert: cert, Key: key}, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return pki.Pair{}, fmt.Errorf("read %s: %w", name, err)
	}
	pair, err := issue()
	if err != nil {
		return pki.Pair{}, err
	}
	return pair, store(name, pair)
}

func store(name string, pair pki.Pair) error {
	if err := os.WriteFile(keyFile(name), pair.Key, 0o600); err != nil {
		return fmt.Errorf("store key of %s: %w", name, err)
	}
	if err := os.WriteFile(certFile(name), pair.Cert, 0o644); err != nil {
		return fmt.Errorf("store certificate of %s: %w", name, err)
	}
	return nil
}

func storeKubeconfig(name string, ca *pki.Authority, client pki.Pair) error {
	c := kubeconfig.Config{Name: clusterName, Server: adminURL, CA: ca.Cert, Client: client}
	return kubeconfig.Write(kubeconfigFile(name), c.Bytes())
}

// adminKubeconfig is the administrator's kubeconfig for an apiserver at server.
func adminKubeconfig(server string) ([]byte, error) {
	ca, err := authority()
	if err != nil {
		return nil, err
	}
	admin, err := kept("admin", func() (pki.Pair, error) {
		return pki.Pair{}, fmt.Errorf("there is no administrator's certificate yet")
	})
	if err != nil {
		return nil, err
	}
	return kubeconfig.Config{Name: clusterName, Server: server, CA: ca.Cert, Client: admin}.Bytes(), nil
}

func certFile(name string) string       { return filepath.Join(pkiDir, name+".crt") }
func keyFile(name string) string        { return filepath.Join(pkiDir, name+".key") }
func kubeconfigFile(name string) string { return filepath.Join(pkiDir, name+".kubeconfig") }
