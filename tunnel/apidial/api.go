package apidial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"

	"berth.dev/tunnel"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// api is an API server as seen by one rest.Config. It knows pods only, so that
// programs that dial do not link every type of Kubernetes.
type api struct {
	config *rest.Config
	client *rest.RESTClient
}

func newAPI(config *rest.Config) (*api, error) {
	config = rest.CopyConfig(config)
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{})
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	return &api{config: config, client: client}, nil
}

// readyPod picks a pod that is Ready and not being deleted.
func (a *api) readyPod(ctx context.Context, namespace, selector string) (string, error) {
	var pods corev1.PodList
	err := a.client.Get().Namespace(namespace).Resource("pods").
		Param("labelSelector", selector).Param("fieldSelector", "status.phase=Running").
		Do(ctx).Into(&pods)
	if err != nil {
		return "", fmt.Errorf("list pods of the manager: %w", forbidden(err, "list", "pods", namespace))
	}
	var ready []string
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				ready = append(ready, p.Name)
			}
		}
	}
	if len(ready) == 0 {
		return "", fmt.Errorf("%w in namespace %s with labels %s (%d running)", ErrNoPod, namespace, selector, len(pods.Items))
	}
	return ready[rand.IntN(len(ready))], nil
}

// ErrNoPod is matched when no pod of the manager is Ready: it is not installed
// there, or just restarting.
var ErrNoPod = errors.New("no ready pod of the manager")

func (a *api) proxyURL(t target) *url.URL {
	return a.client.Get().Namespace(t.namespace).Resource("pods").
		Name(t.pod + ":" + strconv.Itoa(t.port)).SubResource("proxy").
		Suffix(strings.TrimPrefix(tunnel.Path, "/")).URL()
}

func (a *api) portForwardURL(t target) *url.URL {
	return a.client.Get().Namespace(t.namespace).Resource("pods").
		Name(t.pod).SubResource("portforward").URL()
}
