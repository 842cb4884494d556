package kubeconfig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"

	"berth.dev/bus/fault"
)

// verify makes a TLS handshake with the address and demands the certificate that
// the kubeconfig demands. For plain HTTP it connects only.
func (t *Target) verify(ctx context.Context, scheme, addr, name string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if scheme == "http" {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	c := t.cluster()
	cfg := &tls.Config{ServerName: name, InsecureSkipVerify: c.InsecureSkipTLSVerify, MinVersion: tls.VersionTLS12}
	if c.TLSServerName != "" {
		cfg.ServerName = c.TLSServerName
	}
	if len(c.CertificateAuthorityData) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(c.CertificateAuthorityData) {
			return fault.New(fault.FailedPrecondition, "kubectl config view --minify", "the certificate authority of context %s is no PEM certificate", t.Context)
		}
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// networkError reports whether err came before any answer: nobody there, no
// route, no name, no time. Anything else was said by somebody.
func networkError(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial"
}
