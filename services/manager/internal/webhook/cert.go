package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"berth.dev/services/manager/internal/identity"

	"k8s.io/client-go/kubernetes"
)

// CASecret holds the certificate authority of the webhook.
const CASecret = "berth-manager-tls"

const (
	caLife   = 20 * 365 * 24 * time.Hour // of the authority, which only this webhook trusts
	leafLife = 90 * 24 * time.Hour       // renewed in memory at a third of it
)

// authority issues the webhook's serving certificate. Only its own key and
// certificate are kept; leaves live in memory.
type authority struct {
	name string // DNS name of the Service
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte // for caBundle

	mu   sync.Mutex
	leaf *tls.Certificate
}

func loadAuthority(ctx context.Context, c kubernetes.Interface, namespace, name string) (*authority, error) {
	data, err := identity.Secret(ctx, c, namespace, CASecret, newAuthority)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data["ca.crt"], data["ca.key"])
	if err != nil {
		return nil, fmt.Errorf("parse secret %s: %w", CASecret, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("parse secret " + CASecret + ": not an ECDSA key")
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse secret %s: %w", CASecret, err)
	}
	return &authority{name: name, cert: cert, key: key, pem: data["ca.crt"]}, nil
}

func newAuthority() (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the authority's key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "berth-manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(caLife),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the authority's key: %w", err)
	}
	return map[string][]byte{
		"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"ca.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}),
	}, nil
}

// certificate is the TLS server's, made anew when two thirds of its life are over.
func (a *authority) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leaf != nil && time.Until(a.leaf.Leaf.NotAfter) > leafLife/3 {
		return a.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the webhook's key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "berth-manager"}, DNSNames: []string{a.name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the webhook's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the webhook's certificate: %w", err)
	}
	a.leaf = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return a.leaf, nil
}
