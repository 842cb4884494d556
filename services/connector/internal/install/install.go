// Package install puts the cluster side in, upgrades it in place, and takes it
// out again without a trace.
//
// Install applies every object of package manifests by server-side apply, so
// that repeating it is harmless and what others own of an object stays theirs,
// and returns when the manager is available, has published itself with the
// version that was asked for, and has found its webhook to be reached. What
// stands in the way (an image that cannot be pulled, a right that is missing, a
// policy) is looked for while waiting, and named.
//
// Uninstall first has every engagement restored, then deletes in reverse order
// and waits until all is gone. It may be interrupted and repeated anywhere.
//
// Both say what they do step by step, as facts. They hold no state; an Installer
// is for one call at a time.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/deploy/manifests"
	"berth.dev/services/connector/internal/cluster"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Times.
const (
	probeEvery    = 250 * time.Millisecond
	availableTime = 2 * time.Minute  // an image may have to be pulled
	webhookTime   = 30 * time.Second // once the manager is available
	restoreTime   = 90 * time.Second // of all engagements, before uninstalling
	goneTime      = 2 * time.Minute  // a namespace takes a while
)

// Installer works on one cluster.
type Installer struct {
	c      *cluster.Cluster
	dyn    dynamic.Interface
	mapper meta.RESTMapper
	say    func(event.Data)
}

// New asks the cluster what kinds of objects it knows. say is told each step.
func New(c *cluster.Cluster, say func(event.Data)) (*Installer, error) {
	dyn, err := dynamic.NewForConfig(c.Config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(c.Kube.Discovery())
	if err != nil {
		return nil, cluster.Explain(err, c.Server, c.Config.Host, cluster.Right{Verb: "get", Resource: "/apis"})
	}
	return &Installer{c: c, dyn: dyn, mapper: restmapper.NewDiscoveryRESTMapper(groups), say: say}, nil
}

// object is one of the manifests, and where the API has it.
type object struct {
	*unstructured.Unstructured
	api   dynamic.ResourceInterface
	right cluster.Right // without its verb
}

// String is the object in facts: kind namespace/name.
func (o object) String() string {
	if ns := o.GetNamespace(); ns != "" {
		return fmt.Sprintf("%s %s/%s", o.GetKind(), ns, o.GetName())
	}
	return o.GetKind() + " " + o.GetName()
}

func (o object) may(verb string) cluster.Right {
	o.right.Verb = verb
	return o.right
}

func (in *Installer) explain(err error, r cluster.Right) error {
	return cluster.Explain(err, in.c.Server, in.c.Config.Host, r)
}

// objects renders the manifests.
func (in *Installer) objects(o manifests.Options) ([]object, error) {
	text, err := manifests.Render(o)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "ctl install --help", "%v", err)
	}
	var all []object
	dec := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := dec.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the rendered manifests: %w", err)
		}
		if len(u.Object) == 0 {
			continue
		}
		obj, err := in.locate(u)
		if err != nil {
			return nil, err
		}
		all = append(all, obj)
	}
}

func (in *Installer) locate(u *unstructured.Unstructured) (object, error) {
	gvk := u.GroupVersionKind()
	m, err := in.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return object{}, fault.New(fault.FailedPrecondition, "kubectl api-resources", "the cluster does not know the kind %s of %s: Kubernetes 1.25 or newer is needed", gvk.Kind, gvk.GroupVersion())
	}
	o := object{Unstructured: u, right: cluster.Right{Group: m.Resource.Group, Resource: m.Resource.Resource, Name: u.GetName(), Namespace: u.GetNamespace()}}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		o.api = in.dyn.Resource(m.Resource).Namespace(u.GetNamespace())
	} else {
		o.api = in.dyn.Resource(m.Resource)
	}
	return o, nil
}

// Install applies everything and waits until it works. anyVersion: the image is
// the user's own, and may call itself what it likes.
func (in *Installer) Install(ctx context.Context, o manifests.Options, anyVersion bool) (event.Installed, error) {
	all, err := in.objects(o)
	if err != nil {
		return event.Installed{}, err
	}
	if err := in.notTerminating(ctx, o.Namespace); err != nil {
		return event.Installed{}, err
	}
	for _, obj := range all {
		_, err := obj.api.Apply(ctx, obj.GetName(), obj.Unstructured, metav1.ApplyOptions{FieldManager: cluster.FieldManager, Force: true})
		if err != nil {
			return event.Installed{}, in.explain(err, obj.may("patch"))
		}
		in.say(event.InstallationStep{Action: "applied", Object: obj.String()})
	}
	if err := in.renew(ctx, o.Namespace); err != nil {
		return event.Installed{}, err
	}
	in.say(event.InstallationStep{Action: "waiting", Object: "Deployment " + o.Namespace + "/" + managerName})
	if err := in.available(ctx, o.Namespace); err != nil {
		return event.Installed{}, err
	}
	in.say(event.InstallationStep{Action: "waiting", Object: "MutatingWebhookConfiguration " + managerName})
	return in.answers(ctx, o, anyVersion)
}
