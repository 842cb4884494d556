package discovery

import (
	"context"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DirectService is the Service by which the manager may be reached without the
// API server (see deploy/manifests).
const DirectService = "berth-manager-direct"

// mostDirect bounds how many addresses clients try, all at once: any node
// forwards, and one that does not answer costs nothing but a lost SYN.
const mostDirect = 4

// Direct returns the addresses (host:port) of the direct path: those of the load
// balancer, if the Service has one, else its node port on Ready nodes, their
// internal addresses first. None where there is no such Service, or where it is
// of type ClusterIP, which is how it is switched off.
func (d *Discovery) Direct(ctx context.Context, namespace string) []string {
	svc, err := d.Client.CoreV1().Services(namespace).Get(ctx, DirectService, metav1.GetOptions{})
	if err != nil || len(svc.Spec.Ports) == 0 {
		return nil
	}
	port := svc.Spec.Ports[0]
	var all []string
	add := func(host string, port int32) {
		if host != "" && len(all) < mostDirect {
			all = append(all, net.JoinHostPort(host, strconv.Itoa(int(port))))
		}
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		add(in.IP, port.Port)
		add(in.Hostname, port.Port)
	}
	if len(all) > 0 || port.NodePort == 0 {
		return all
	}
	nodes, err := d.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		d.Log.Warn("nodes cannot be listed; no direct path is offered", "err", err)
		return nil
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, n := range nodes.Items {
			if !nodeReady(&n) {
				continue
			}
			for _, a := range n.Status.Addresses {
				if a.Type == kind {
					add(a.Address, port.NodePort)
				}
			}
		}
	}
	return all
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
