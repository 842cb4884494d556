package kubeconfig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"time"

	"berth.dev/bus/fault"

	"k8s.io/client-go/tools/clientcmd/api"
)

// credential is what an exec plugin says.
type credential struct {
	Token       string    `json:"token"`
	Certificate string    `json:"clientCertificateData"`
	Key         string    `json:"clientKeyData"`
	Expires     time.Time `json:"expirationTimestamp"`
}

// pluginTimeout is long, since a plugin may open a browser for a login.
const pluginTimeout = 2 * time.Minute

// execCredential is the ExecCredential of client.authentication.k8s.io, v1 and
// v1beta1, which differ in nothing that is used here. The protocol, and not
// client-go's implementation, since that one gives the result to an HTTP
// transport only, without the expiry.
// https://kubernetes.io/docs/reference/config-api/client-authentication.v1/
type execCredential struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Spec       execSpec    `json:"spec"`
	Status     *credential `json:"status,omitempty"`
}

type execSpec struct {
	Cluster     *execCluster `json:"cluster,omitempty"`
	Interactive bool         `json:"interactive"`
}

type execCluster struct {
	Server     string `json:"server"`
	ServerName string `json:"tls-server-name,omitempty"`
	Insecure   bool   `json:"insecure-skip-tls-verify,omitempty"`
	CA         []byte `json:"certificate-authority-data,omitempty"`
	ProxyURL   string `json:"proxy-url,omitempty"`
	Config     any    `json:"config,omitempty"`
}

// runPlugin runs the exec plugin with the user's own environment and terminal.
func runPlugin(ctx context.Context, p *api.ExecConfig, c *api.Cluster) (credential, error) {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	info, err := os.Stdin.Stat()
	interactive := err == nil && info.Mode()&os.ModeCharDevice != 0 && p.InteractiveMode != api.NeverExecInteractiveMode
	ask := execCredential{APIVersion: p.APIVersion, Kind: "ExecCredential", Spec: execSpec{Interactive: interactive}}
	if p.ProvideClusterInfo {
		ask.Spec.Cluster = &execCluster{Server: c.Server, ServerName: c.TLSServerName, Insecure: c.InsecureSkipTLSVerify,
			CA: c.CertificateAuthorityData, ProxyURL: c.ProxyURL, Config: p.Config}
	}
	question, err := json.Marshal(ask)
	if err != nil {
		return credential{}, err
	}
	cmd := exec.CommandContext(ctx, p.Command, p.Args...)
	cmd.Env = append(os.Environ(), "KUBERNETES_EXEC_INFO="+string(question))
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if interactive {
		cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	}
	argv := strings.Join(append([]string{p.Command}, p.Args...), " ")
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && p.InstallHint != "" {
			return credential{}, fault.New(fault.FailedPrecondition, "", "the exec plugin %s is not installed: %s", p.Command, p.InstallHint)
		}
		return credential{}, fault.New(fault.FailedPrecondition, argv, "the exec plugin %s failed: %v: %s", p.Command, err, lastLine(errs.String()))
	}
	var answer execCredential
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return credential{}, fault.New(fault.FailedPrecondition, argv, "the exec plugin %s did not answer with an ExecCredential", p.Command)
	}
	if s := answer.Status; s != nil && (s.Token != "" || s.Certificate != "" && s.Key != "") {
		return *s, nil
	}
	return credential{}, fault.New(fault.FailedPrecondition, argv, "the exec plugin %s gave neither a token nor a certificate", p.Command)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
