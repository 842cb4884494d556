// Package kubeconfig turns the user's kubeconfig into one that works in a
// container: one context, nothing that points to a file or a program of the
// host, and a server that containers reach.
//
// [Load] reads the files by kubectl's rules (a list in KUBECONFIG, --kubeconfig,
// --context), keeps one context, inlines certificates and tokens, and runs an
// exec plugin here, on the host, where its browser, its cache and its login are.
// [Target.Locate] finds the API server behind a loopback address.
//
// Nothing is written, and nothing of it is ever printed but names and the
// server's URL. client-go is used for its parser and its merge rules alone.
package kubeconfig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"berth.dev/bus/fault"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// Stage is the name of the stage at which an unusable kubeconfig fails.
const Stage = "kubeconfig"

// Options choose a context.
type Options struct {
	File      string // --kubeconfig; empty: KUBECONFIG, ~/.kube/config
	Context   string // empty: the current one
	Namespace string // empty: the context's
}

// Target is one cluster, as one user, in one namespace.
type Target struct {
	Context   string
	Namespace string
	Server    string    // as the user's kubeconfig has it
	Expires   time.Time // when its credentials do; zero: not known to
	cfg       *api.Config
	// plugin is the exec plugin that made the credentials, nil if none did.
	// Refreshing them is running it again: see Refresh.
	plugin *api.ExecConfig
}

// Load loads the target. Every failure is a fault of Stage.
func Load(ctx context.Context, o Options) (*Target, error) {
	t, err := load(ctx, o)
	if err != nil {
		return nil, fault.At(Stage, err)
	}
	return t, nil
}

func load(ctx context.Context, o Options) (*Target, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.File
	rules.WarnIfAllMissing = false
	cfg, err := rules.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "ls -l "+o.File, "there is no kubeconfig %s", o.File)
	case err != nil:
		return nil, fault.New(fault.FailedPrecondition, "kubectl config view", "read the kubeconfig: %v", err)
	case len(cfg.Contexts) == 0:
		return nil, fault.New(fault.NotFound, "export KUBECONFIG=FILE, or pass --kubeconfig FILE", "no context in %s", strings.Join(rules.GetLoadingPrecedence(), ", "))
	}
	name, err := choose(cfg, o.Context)
	if err != nil {
		return nil, err
	}
	cfg.CurrentContext = name
	if err := api.MinifyConfig(cfg); err != nil {
		return nil, fault.New(fault.FailedPrecondition, "kubectl config view --minify", "context %s: %v", name, err)
	}
	if err := api.FlattenConfig(cfg); err != nil {
		return nil, fault.New(fault.FailedPrecondition, "kubectl config view --flatten", "inline the certificates of context %s: %v", name, err)
	}
	kctx := cfg.Contexts[name]
	cluster := cfg.Clusters[kctx.Cluster]
	if cluster == nil || cluster.Server == "" {
		return nil, fault.New(fault.FailedPrecondition, "kubectl config view --minify", "context %s names no server", name)
	}
	t := &Target{Context: name, Namespace: o.Namespace, Server: cluster.Server, cfg: cfg}
	if t.Namespace == "" {
		t.Namespace = kctx.Namespace
	}
	if t.Namespace == "" {
		t.Namespace = "default"
	}
	kctx.Namespace = t.Namespace
	if err := t.credentials(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// choose is the context to use; one that does not exist is told with those that do.
func choose(cfg *api.Config, want string) (string, error) {
	names := slices.Sorted(maps.Keys(cfg.Contexts))
	hint := "ctl connect --docker --context " + names[0]
	switch {
	case want == "" && cfg.CurrentContext == "":
		return "", fault.New(fault.FailedPrecondition, hint, "the kubeconfig has no current context; there are: %s", strings.Join(names, ", "))
	case want == "":
		want = cfg.CurrentContext
	}
	if cfg.Contexts[want] == nil {
		return "", fault.New(fault.NotFound, hint, "the kubeconfig has no context %q; there are: %s", want, strings.Join(names, ", "))
	}
	return want, nil
}

// credentials makes the user's entry stand on its own: no file, no program.
func (t *Target) credentials(ctx context.Context) error {
	user := t.user()
	if user == nil {
		return nil // anonymous, or by a proxy in front
	}
	if user.TokenFile != "" {
		b, err := os.ReadFile(user.TokenFile)
		if err != nil {
			return fault.New(fault.FailedPrecondition, "", "read the token of context %s: %v", t.Context, err)
		}
		user.Token, user.TokenFile = strings.TrimSpace(string(b)), ""
	}
	if p := user.AuthProvider; p != nil {
		// What client-go took out but for oidc; its token is used as it stands.
		token := p.Config["id-token"]
		if token == "" {
			return fault.New(fault.FailedPrecondition, "kubectl get --raw /version", "context %s uses the auth provider %s, which Kubernetes has replaced by exec plugins", t.Context, p.Name)
		}
		user.Token, user.AuthProvider = token, nil
	}
	if user.Exec == nil {
		return nil
	}
	t.plugin, user.Exec = user.Exec, nil
	return t.Refresh(ctx)
}

// Refresh runs the exec plugin, if there is one, and takes over what it says.
// It is called once by Load; whoever keeps a connection for longer than Expires
// calls it again and hands JSON on.
func (t *Target) Refresh(ctx context.Context) error {
	if t.plugin == nil {
		return nil
	}
	cred, err := runPlugin(ctx, t.plugin, t.cluster())
	if err != nil {
		return fault.At(Stage, err)
	}
	user := t.user()
	user.Token = cred.Token
	user.ClientCertificateData, user.ClientKeyData = []byte(cred.Certificate), []byte(cred.Key)
	t.Expires = cred.Expires
	return nil
}

func (t *Target) user() *api.AuthInfo   { return t.cfg.AuthInfos[t.cfg.Contexts[t.Context].AuthInfo] }
func (t *Target) cluster() *api.Cluster { return t.cfg.Clusters[t.cfg.Contexts[t.Context].Cluster] }

// JSON is the kubeconfig to send.
func (t *Target) JSON() (json.RawMessage, error) {
	y, err := clientcmd.Write(*t.cfg)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	j, err := yaml.YAMLToJSON(y)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig as JSON: %w", err)
	}
	return j, nil
}
