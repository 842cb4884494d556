package tunnel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Pin names a public key: base64url (unpadded) of the SHA-256 of its
// SubjectPublicKeyInfo. It is not secret.
type Pin string

// Identity is an ECDSA P-256 key with a self-signed certificate that merely
// carries it: nothing in the certificate but the key is ever looked at. It is
// immutable.
type Identity struct {
	cert tls.Certificate
	pin  Pin
}

// NewIdentity makes a fresh key.
func NewIdentity() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate tunnel key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "berth"},
		// The pin is the identity; dates would only make clocks matter.
		NotBefore: time.Unix(0, 0),
		NotAfter:  time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 4.1.2.5: no end
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign tunnel certificate: %w", err)
	}
	return newIdentity(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

func newIdentity(cert tls.Certificate) (*Identity, error) {
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse tunnel certificate: %w", err)
	}
	cert.Leaf = leaf
	return &Identity{cert: cert, pin: pinOf(leaf)}, nil
}

func pinOf(cert *x509.Certificate) Pin {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return Pin(base64.RawURLEncoding.EncodeToString(sum[:]))
}

// Pin returns the name of the identity's public key.
func (id *Identity) Pin() Pin { return id.pin }

// MarshalPEM returns key and certificate as PEM blocks, for a Secret. Treat it
// as a private key.
func (id *Identity) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(id.cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode tunnel key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Certificate[0]})...), nil
}

// ParseIdentity reads what MarshalPEM wrote. It fails when key and certificate
// do not belong together.
func ParseIdentity(data []byte) (*Identity, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fmt.Errorf("parse tunnel identity: %w", err)
	}
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("parse tunnel identity: not an ECDSA P-256 key")
	}
	return newIdentity(cert)
}
