package e2e

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// certify writes ca.pem, cert.pem and key.pem, as the docker command wants them,
// into dir, and returns a server's configuration that demands them.
func certify(t *testing.T, dir string) *tls.Config {
	t.Helper()
	serial := int64(0)
	issue := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		serial++
		template.SerialNumber = big.NewInt(serial)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	caKey, serverKey, clientKey := newKey(), newKey(), newKey()
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER := issue(ca, ca, caKey, caKey)
	server := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "engine"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, serverKey, caKey)
	client := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "user"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, clientKey, caKey)
	der, err := x509.MarshalECPrivateKey(clientKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.pem", "CERTIFICATE", caDER)
	write("cert.pem", "CERTIFICATE", client)
	write("key.pem", "EC PRIVATE KEY", der)
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server}, PrivateKey: serverKey}},
		ClientCAs:    pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// engineByTLS is the engine's socket behind TCP with TLS on both ends.
func engineByTLS(t *testing.T, cfg *tls.Config) (addr string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { relayToEngine(in.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() { l.Close() }) // connections end with their clients
	return l.Addr().String()
}

func relayToEngine(in *tls.Conn) {
	defer in.Close()
	out, err := net.Dial("unix", strings.TrimPrefix(cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"), "unix://"))
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(in, out)
		_ = in.CloseWrite()
	}()
	_, _ = io.Copy(out, in)
	_ = out.(*net.UnixConn).CloseWrite()
	<-done
}

// An engine that is reached by TCP and TLS, by environment and by a Docker
// context: connect, a container with its terminal's streams and ports, quit.
func TestEngineReach(t *testing.T) {
	certs := t.TempDir()
	addr := engineByTLS(t, certify(t, certs))
	config := t.TempDir()
	create := exec.Command("docker", "--config", config, "context", "create", "there", "--docker",
		"host=tcp://"+addr+",ca="+filepath.Join(certs, "ca.pem")+",cert="+filepath.Join(certs, "cert.pem")+",key="+filepath.Join(certs, "key.pem"))
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("docker context create: %v\n%s", err, out)
	}
	for _, c := range []struct {
		name string
		env  []string
	}{
		{"DOCKER_HOST", []string{"DOCKER_HOST=tcp://" + addr, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + certs}},
		{"context", []string{"DOCKER_HOST=", "DOCKER_CONFIG=" + config, "DOCKER_CONTEXT=there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctl := rig.NewCtl(t, cluster)
			ctl.Env = c.env
			connect(t, ctl)
			if r := ctl.Must(t, "docker-run", probeImage, "get", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
				t.Errorf("%v", r)
			}
			hashes(t, ctl, 20<<20)
			p := ctl.Start(t, "docker-run", "-p", "127.0.0.1::81", probeImage, "echo", "127.0.0.1:81")
			for port, at := range published(t, p, 1) {
				echoes(t, port, at)
			}
			if err := p.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			p.Wait(t, time.Minute)
			nothingBeside(t)
			if r := ctl.Run(t, "doctor"); !strings.Contains(r.Stdout, "another machine (tcp://"+addr+")") {
				t.Errorf("doctor does not say how far it goes: %v", r)
			}
		})
	}
	t.Run("without the key", func(t *testing.T) {
		ctl := rig.NewCtl(t, cluster)
		ctl.Env = []string{"DOCKER_HOST=tcp://" + addr}
		refused(t, ctl, 1, []string{"docker", "try:"}, "docker-run", probeImage)
	})
}
