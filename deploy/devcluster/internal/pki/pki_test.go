package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := New("test-ca")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(p.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
		t.Errorf("key does not fit: %v", err)
	}
	return cert
}

func TestServerVerifiesByEveryName(t *testing.T) {
	a := authority(t)
	names := []string{"localhost", "kubernetes.default.svc", "127.0.0.1", "fd00:10:96::1"}
	pair, err := a.Sign(Leaf{CommonName: "kube-apiserver", Names: names})
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, pair)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Cert)
	for _, name := range names {
		_, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if in9 := time.Now().AddDate(9, 0, 0); cert.NotAfter.Before(in9) {
		t.Errorf("ends at %v", cert.NotAfter)
	}
}

func TestClientIsNoServer(t *testing.T) {
	a := authority(t)
	pair, err := a.Sign(Leaf{CommonName: "kubernetes-admin", Groups: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, pair)
	if slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Error("a client's certificate serves")
	}
	if cert.Subject.CommonName != "kubernetes-admin" || !slices.Equal(cert.Subject.Organization, []string{"system:masters"}) {
		t.Errorf("subject is %v", cert.Subject)
	}
}

func TestLoadedAuthoritySignsAlike(t *testing.T) {
	a := authority(t)
	b, err := Load(a.Pair)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := b.Sign(Leaf{CommonName: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if err := parse(t, pair).CheckSignatureFrom(a.cert); err != nil {
		t.Error(err)
	}
	if _, err := Load(Pair{Cert: []byte("no PEM")}); err == nil {
		t.Error("loaded rubbish")
	}
}
