package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"berth.dev/bus/fault"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// explain makes a fault of what the API server, or the way to it, answered to
// the use of the right r.
func (c *Cluster) explain(err error, r Right) error {
	host := ""
	if c.Config != nil {
		host = c.Config.Host
	}
	return Explain(err, c.Server, host, r)
}

// Explain makes a fault of an error of client-go. server is the API server as
// the user knows it, host as it is reached from here.
func Explain(err error, server, host string, r Right) error {
	var known *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case apierrors.IsForbidden(err):
		return r.denied(err)
	case apierrors.IsUnauthorized(err):
		return fault.New(fault.PermissionDenied, "kubectl auth whoami", "the API server %s does not accept the credentials of the kubeconfig: they are wrong or have expired", server)
	case apierrors.IsNotFound(err):
		return fault.New(fault.NotFound, "", "%s: %v", r, err)
	case apierrors.IsAlreadyExists(err):
		return fault.New(fault.AlreadyExists, "", "%s: %v", r, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return fault.New(fault.InvalidArgument, "", "%s: the API server refuses it: %v", r, err)
	}
	if why := unreachable(err); why != "" {
		at := server
		if host != "" && host != server {
			at = fmt.Sprintf("%s (from the workspace: %s)", server, host)
		}
		return fault.New(fault.Unavailable, "kubectl get --raw /version", "the API server %s %s", at, why)
	}
	return fault.New(fault.Unavailable, "kubectl get --raw /readyz?verbose", "%s: %v", r, err)
}

// unreachable says in a clause why no answer came, "" where one did.
func unreachable(err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		alert    tls.AlertError
		dns      *net.DNSError
		netErr   net.Error
		urlErr   *url.Error
	)
	switch {
	case errors.As(err, &unknown):
		return "shows a certificate that the kubeconfig's certificate authority did not sign: the kubeconfig is of another cluster, or something between intercepts TLS"
	case errors.As(err, &hostname):
		return fmt.Sprintf("shows a certificate that is not for the name it is reached by: %v", hostname)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "shows a certificate that is expired or not yet valid (" + certificateTimes(invalid.Cert) + "); check the clocks"
	case errors.As(err, &invalid):
		return fmt.Sprintf("shows a certificate that is not valid: %v", invalid)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "does not speak TLS on that port"
	case errors.As(err, &alert):
		return fmt.Sprintf("refuses the client's certificate: %v", alert)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("cannot be found: the name %s does not resolve from the workspace", dns.Name)
	case errors.As(err, &dns):
		return fmt.Sprintf("cannot be found: resolving %s failed: %v", dns.Name, dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses the connection: nothing listens there, or it listens on the host's loopback only"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "cannot be reached: there is no route to it from the workspace"
	case errors.Is(err, syscall.ECONNRESET):
		return "cut the connection"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &netErr) && netErr.Timeout():
		return "did not answer in time"
	case errors.As(err, &urlErr) && strings.Contains(urlErr.Err.Error(), "remote error: tls"):
		return fmt.Sprintf("refuses the client's certificate: %v", urlErr.Err)
	case errors.As(err, &urlErr):
		return fmt.Sprintf("cannot be reached: %v", urlErr.Err)
	}
	return ""
}

func certificateTimes(c *x509.Certificate) string {
	if c == nil {
		return "no dates"
	}
	return c.NotBefore.Format(time.DateOnly) + " to " + c.NotAfter.Format(time.DateOnly)
}
