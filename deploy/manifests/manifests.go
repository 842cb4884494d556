// Package manifests holds the cluster side of Berth as Kubernetes objects.
//
// There is one source, berth.yaml.tmpl. [Render] makes plain YAML of it, which
// `ctl install` applies and `kubectl apply -f` takes; [Chart] makes the
// templates of the Helm chart under deploy/chart, by putting Helm's expressions
// in the place of the values. Every object carries the label
// app.kubernetes.io/part-of=berth, by which uninstall finds it.
//
//go:generate go run ./chartgen
package manifests

import (
	"bytes"
	_ "embed" // the source of the objects
	"errors"
	"fmt"
	"regexp"
	"text/template"
)

//go:embed berth.yaml.tmpl
var source string

// Options are what an installation chooses.
type Options struct {
	Namespace string // of the manager; default "berth"
	Image     string // holds /manager and /agent; required
	Version   string // for the label app.kubernetes.io/version; required
	LogLevel  string // debug, info, warn or error; default info
	// Direct is the type of the Service by which clients reach the manager without
	// the API server: NodePort (the default), LoadBalancer, or ClusterIP for not at all.
	Direct string
	// ExcludeEnv are variables that never leave the cluster, with commas between
	// them: names, or patterns with * and ?.
	ExcludeEnv string
}

type values struct {
	Options
	CreateNamespace bool
}

var (
	namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	imagePattern     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}$`)
	versionPattern   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	excludePattern   = regexp.MustCompile(`^[A-Za-z0-9._*?-]+(,[A-Za-z0-9._*?-]+)*$`)
	levelPattern     = regexp.MustCompile(`^(debug|info|warn|error)$`)
)

// Render returns all objects, the namespace first, as one stream of YAML
// documents. What could break out of its place in the YAML is refused.
func Render(o Options) ([]byte, error) {
	if o.Namespace == "" {
		o.Namespace = "berth"
	}
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	if o.Direct == "" {
		o.Direct = "NodePort"
	}
	switch {
	case !namespacePattern.MatchString(o.Namespace):
		return nil, fmt.Errorf("render manifests: %q is not a namespace's name", o.Namespace)
	case o.Namespace == "default" || o.Namespace == "kube-system":
		return nil, fmt.Errorf("render manifests: the namespace %s cannot be the manager's: it needs one that its webhook leaves alone", o.Namespace)
	case !imagePattern.MatchString(o.Image):
		return nil, fmt.Errorf("render manifests: %q is not an image reference", o.Image)
	case !versionPattern.MatchString(o.Version):
		return nil, fmt.Errorf("render manifests: %q cannot be a label's value", o.Version)
	case o.Direct != "NodePort" && o.Direct != "LoadBalancer" && o.Direct != "ClusterIP":
		return nil, fmt.Errorf("render manifests: %q is no type of Service for the direct path: NodePort, LoadBalancer or ClusterIP", o.Direct)
	case o.ExcludeEnv != "" && !excludePattern.MatchString(o.ExcludeEnv):
		return nil, fmt.Errorf("render manifests: %q are no names of variables (with * and ? for any characters, and any one)", o.ExcludeEnv)
	case !levelPattern.MatchString(o.LogLevel):
		return nil, errors.New("render manifests: the log level is debug, info, warn or error")
	}
	return execute(values{Options: o, CreateNamespace: true})
}

// Chart returns the template of the Helm chart. Helm creates the namespace
// (--create-namespace) and is therefore not told to.
func Chart() ([]byte, error) {
	return execute(values{Options: Options{
		Namespace:  "{{ .Release.Namespace }}",
		Image:      "{{ .Values.image }}",
		Version:    "{{ .Chart.AppVersion }}",
		LogLevel:   "{{ .Values.logLevel }}",
		Direct:     "{{ .Values.direct }}",
		ExcludeEnv: "{{ .Values.excludeEnv }}",
	}})
}

func execute(v values) ([]byte, error) {
	t, err := template.New("berth.yaml").Delims("[[", "]]").Parse(source)
	if err != nil {
		return nil, fmt.Errorf("parse the manifests' template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("render manifests: %w", err)
	}
	return b.Bytes(), nil
}
