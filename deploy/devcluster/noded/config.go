package main

import (
	"fmt"
	"path/filepath"
	"strings"
)

// writeConfigs renders the configuration files of containerd, CNI, kubelet and
// kube-proxy. They are written at each start and never read back by noded.
func writeConfigs(n node) error {
	files := map[string]string{
		"/etc/containerd/config.toml":             containerdConfig(n),
		"/etc/cni/net.d/10-berth.conflist":        cniConfig(n),
		filepath.Join(configDir, "kubelet.yaml"):  kubeletConfig(),
		filepath.Join(configDir, "proxy.yaml"):    proxyConfig(n),
		filepath.Join(configDir, "resolv.conf"):   fmt.Sprintf("nameserver %s\n", n.ip4),
		filepath.Join(configDir, "manifest.yaml"): manifest,
	}
	for path, content := range files {
		if err := writeFile(path, content); err != nil {
			return err
		}
	}
	return nil
}

// containerdConfig: on a restricted node OOM scores must not be lowered below
// the container's own, and runc is called through a filter (see runc.go).
func containerdConfig(n node) string {
	runc := "runc"
	if n.restricted {
		runc = "/usr/local/bin/" + runcFilter
	}
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:v1"
  restrict_oom_score_adj = %t
  tolerate_missing_hugetlb_controller = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %q
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
`, n.restricted, n.snapshots, runc)
}

// cniConfig uses ptp, not bridge: with a veth pair and a route per pod all pod
// traffic is routed by the node. On a bridge, the reply of a pod to its
// neighbour would bypass the node, and with it the translation of service
// addresses, unless the kernel has br_netfilter, which not every machine loads.
func cniConfig(n node) string {
	ranges := fmt.Sprintf(`[{"subnet": %q}]`, nodePods4)
	routes := `{"dst": "0.0.0.0/0"}`
	if n.dual() {
		ranges += fmt.Sprintf(`, [{"subnet": %q}]`, nodePods6)
		routes += `, {"dst": "::/0"}`
	}
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "berth",
  "plugins": [
    {"type": "ptp", "ipMasq": true, "mtu": 0,
     "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [%s], "routes": [%s]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, ranges, routes)
}

// kubeletConfig turns off what protects a production machine's disk and would
// surprise on a developer's: image garbage collection and disk eviction.
func kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  x509: {clientCAFile: %[1]s}
  webhook: {enabled: true}
authorization: {mode: Webhook}
tlsCertFile: %[2]s
tlsPrivateKeyFile: %[3]s
clusterDNS: [%[4]s]
clusterDomain: cluster.local
resolvConf: %[5]s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
serializeImagePulls: false
registryPullQPS: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi}
shutdownGracePeriod: 0s
`, certFile("ca"), certFile("kubelet"), keyFile("kubelet"), dnsIP, filepath.Join(configDir, "resolv.conf"))
}

// proxyConfig leaves the kernel's conntrack limits alone: they are the
// machine's, not the container's.
func proxyConfig(n node) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
mode: nftables
clusterCIDR: %q
hostnameOverride: %s
oomScoreAdj: 0
nftables: {minSyncPeriod: 100ms}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, kubeconfigFile("proxy"), n.families(podCIDR4, podCIDR6), n.name)
}

// components are the node's processes in the order they start; each waits for
// its `after` to be ready.
func components(n node) []*component {
	kube := func(name string, args ...string) []string {
		return append([]string{"/usr/local/bin/hyperkube", name}, args...)
	}
	services := n.families(serviceCIDR4, serviceCIDR6)
	containerd := &component{name: "containerd", argv: []string{"/usr/bin/containerd"}, ready: containerdReady}
	etcd := &component{name: "etcd", ready: etcdReady, argv: []string{"/usr/local/bin/etcd",
		"--data-dir=" + stateDir + "/etcd",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--log-level=warn",
		"--unsafe-no-fsync", // a power cut may cost the cluster, and nothing else
	}}
	apiserver := &component{name: "apiserver", after: []*component{etcd}, ready: apiserverReady, argv: kube("apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=6443",
		"--advertise-address="+n.ip4.String(),
		"--tls-cert-file="+certFile("apiserver"), "--tls-private-key-file="+keyFile("apiserver"),
		"--client-ca-file="+certFile("ca"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+certFile("service-accounts"),
		"--service-account-signing-key-file="+keyFile("service-accounts"),
		"--service-cluster-ip-range="+services,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",
		"--kubelet-client-certificate="+certFile("apiserver-kubelet"), "--kubelet-client-key="+keyFile("apiserver-kubelet"),
		"--kubelet-preferred-address-types=InternalIP", // there is no DNS for the node's name
		"--requestheader-client-ca-file="+certFile("ca"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+certFile("front-proxy"), "--proxy-client-key-file="+keyFile("front-proxy"),
	)}
	behind := []*component{apiserver}
	return []*component{
		containerd, etcd, apiserver,
		{name: "controllers", after: behind, argv: kube("controllers",
			"--kubeconfig="+kubeconfigFile("controllers"),
			"--leader-elect=false", // there is no other to follow
			"--use-service-account-credentials",
			"--kube-api-qps=500", "--kube-api-burst=1000", // each controller first fetches a token: at 20/s, that takes 5 s
			"--service-account-private-key-file="+keyFile("service-accounts"),
			"--root-ca-file="+certFile("ca"),
			"--cluster-signing-cert-file="+certFile("ca"), "--cluster-signing-key-file="+keyFile("ca"),
			"--allocate-node-cidrs", "--cluster-cidr="+n.families(podCIDR4, podCIDR6),
			"--service-cluster-ip-range="+services,
		)},
		{name: "scheduler", after: behind, argv: kube("scheduler",
			"--kubeconfig="+kubeconfigFile("scheduler"), "--leader-elect=false")},
		{name: "kubelet", after: []*component{apiserver, containerd}, argv: kube("kubelet",
			"--kubeconfig="+kubeconfigFile("kubelet"),
			"--config="+filepath.Join(configDir, "kubelet.yaml"),
			"--hostname-override="+n.name, "--node-ip="+n.ips(),
		)},
		{name: "proxy", after: behind, argv: kube("proxy", "--config="+filepath.Join(configDir, "proxy.yaml"))},
	}
}

// describe is one line for the container's log.
func (n node) describe() string {
	kind := []string{"node " + n.name, n.ips(), n.snapshots}
	if n.restricted {
		kind = append(kind, "without CAP_SYS_RESOURCE")
	}
	return strings.Join(kind, ", ")
}
