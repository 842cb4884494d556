// Package rig is what the end-to-end tests, the demo and the benchmark hold the
// real things with: the cluster, ctl, the Docker Engine and the host.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
)

// Cluster is the cluster of $KUBECONFIG, with the rights of its user.
type Cluster struct {
	Config     *rest.Config
	Kube       kubernetes.Interface
	Dynamic    dynamic.Interface
	Mapper     *restmapper.DeferredDiscoveryRESTMapper
	Kubeconfig string
}

// Open opens the cluster of $KUBECONFIG.
func Open() (*Cluster, error) {
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		return nil, errors.New("KUBECONFIG is not set: run this by `make e2e`, or set it to your cluster's")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 100, 200
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	m := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(kube.Discovery()))
	return &Cluster{cfg, kube, dyn, m, path}, nil
}

// Apply applies the objects of a YAML file by server-side apply; objects
// without a namespace go to "default".
func (c *Cluster) Apply(ctx context.Context, path string) error {
	return c.each(path, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		_, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "berth-example", Force: true})
		return err
	})
}

// Delete deletes them; what is not there is fine.
func (c *Cluster) Delete(ctx context.Context, path string) error {
	return c.each(path, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

func (c *Cluster) each(path string, do func(dynamic.ResourceInterface, *unstructured.Unstructured) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		o := &unstructured.Unstructured{}
		err := dec.Decode(o)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if len(o.Object) == 0 {
			continue
		}
		gvk := o.GroupVersionKind()
		m, err := c.Mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return fmt.Errorf("find the resource of %s: %w", gvk, err)
		}
		var r dynamic.ResourceInterface = c.Dynamic.Resource(m.Resource)
		if m.Scope.Name() == meta.RESTScopeNameNamespace {
			ns := o.GetNamespace()
			if ns == "" {
				ns = "default"
			}
			r = c.Dynamic.Resource(m.Resource).Namespace(ns)
		}
		if err := do(r, o); err != nil {
			return fmt.Errorf("%s %s: %w", gvk.Kind, o.GetName(), err)
		}
	}
}

// Settle waits until a deployment's pods are as its template says, Ready, and
// no others are left.
func (c *Cluster) Settle(ctx context.Context, ns, name string) error {
	var last string
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		d, err := c.Kube.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			last = err.Error()
			return false, nil
		}
		pods, err := c.Pods(ctx, ns, d)
		if err != nil {
			last = err.Error()
			return false, nil
		}
		want := int(*d.Spec.Replicas)
		ready := 0
		for _, p := range pods {
			if Ready(&p) && p.DeletionTimestamp == nil {
				ready++
			}
		}
		last = fmt.Sprintf("%d pods, %d ready, %d wanted", len(pods), ready, want)
		return d.Status.ObservedGeneration >= d.Generation && ready == want && len(pods) == want, nil
	})
	if err != nil {
		return fmt.Errorf("wait for deployment %s/%s: %w (%s)", ns, name, err, last)
	}
	return nil
}

// Pods are the pods that a deployment's selector selects, finished ones aside.
func (c *Cluster) Pods(ctx context.Context, ns string, d *appsv1.Deployment) ([]corev1.Pod, error) {
	l, err := c.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// Ready reports a pod's Ready condition.
func Ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Exec runs a command in a pod's container and returns what it printed.
func (c *Cluster) Exec(ctx context.Context, ns, pod, container string, argv ...string) (string, error) {
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: argv, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	ex, err := remotecommand.NewSPDYExecutor(c.Config, "POST", req.URL())
	if err != nil {
		return "", fmt.Errorf("exec in %s: %w", pod, err)
	}
	var out, errs bytes.Buffer
	if err := ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return out.String(), fmt.Errorf("exec %s in %s: %w: %s", strings.Join(argv, " "), pod, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Get makes an HTTP request inside the cluster, from the example's backend.
func (c *Cluster) Get(ctx context.Context, url string) (string, error) {
	l, err := c.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=backend"})
	if err != nil {
		return "", err
	}
	for _, p := range l.Items {
		if Ready(&p) && p.DeletionTimestamp == nil {
			return c.Exec(ctx, "default", p.Name, "backend", "/app", "get", url)
		}
	}
	return "", errors.New("no Ready pod of the example's backend: run `make example`")
}

// Labelled lists every object of every kind, in every namespace, that matches
// the selector.
func (c *Cluster) Labelled(ctx context.Context, selector string) ([]string, error) {
	lists, err := c.Kube.Discovery().ServerPreferredResources()
	if err != nil {
		return nil, fmt.Errorf("discover resources: %w", err)
	}
	var all []string
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") || strings.Contains(r.Name, "/") {
				continue
			}
			items, err := c.Dynamic.Resource(gv.WithResource(r.Name)).List(ctx, metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				continue // not every listable kind can be listed with a selector
			}
			for _, i := range items.Items {
				all = append(all, fmt.Sprintf("%s %s/%s", r.Name, i.GetNamespace(), i.GetName()))
			}
		}
	}
	return all, nil
}

// Cordon says whether new pods may come to the nodes, all of them.
func (c *Cluster) Cordon(ctx context.Context, on bool) error {
	nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, on)
		if _, err := c.Kube.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// DeletePods deletes the pods that match, without grace.
func (c *Cluster) DeletePods(ctx context.Context, ns, selector string) error {
	now := int64(0)
	return c.Kube.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{LabelSelector: selector})
}
