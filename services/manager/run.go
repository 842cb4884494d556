package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/discovery"
	"berth.dev/services/manager/internal/engagement"
	"berth.dev/services/manager/internal/entrance"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/services/manager/internal/identity"
	"berth.dev/services/manager/internal/inject"
	"berth.dev/services/manager/internal/proof"
	"berth.dev/services/manager/internal/tunnelserver"
	"berth.dev/services/manager/internal/webhook"
	"berth.dev/tunnel"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	name          = "berth-manager"
	selfTestFirst = 200 * time.Millisecond // until the webhook is reached for the first time
	selfTestEvery = 30 * time.Second       // also mends a caBundle that was lost
)

// run wires the manager together and returns when all of it has ended.
func run(ctx context.Context, args []string) error {
	cfg, err := configure(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level})).With("service", "manager")
	klog.SetSlogLogger(log)
	client, err := connect(cfg.kubeconfig)
	if err != nil {
		return err
	}
	id, err := identity.Load(ctx, client, cfg.namespace)
	if err != nil {
		return err
	}
	installation, err := identity.InstallationID(ctx, client, cfg.namespace)
	if err != nil {
		return err
	}
	resolver, err := discovery.ReadResolver(cfg.resolvConf)
	if err != nil {
		return err
	}
	svc, err := client.CoreV1().Services(cfg.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read own service: %w", err)
	}

	secret, err := id.MarshalPEM()
	if err != nil {
		return err
	}
	view := engagement.NewView(client, cfg.namespace, proof.NewKey(secret), log)
	options := inject.Options{Image: cfg.image, Addresses: addresses(svc), Pin: string(id.Pin())}
	hook := &webhook.Webhook{Client: client, Namespace: cfg.namespace, Engagements: view, Log: log, Options: options}
	if err := hook.Prepare(ctx); err != nil {
		return err
	}
	var control *engagement.Controller
	sessions := hub.New(func(h hub.Change) { control.Changed(h) })
	entrances := entrance.New()
	control = engagement.New(view, sessions, hook.SelfTest, entrances, options)
	if err := control.Watch(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	defer view.Stop()
	if err := view.Start(ctx); err != nil {
		return err
	}
	found := &discovery.Discovery{Client: client, PodIPs: view.PodIPs, Log: log}
	srv := &tunnelserver.Server{Identity: id, Version: version, InstallationID: installation, Resolver: resolver, Cluster: view, Hub: sessions, Entrances: entrances, ExcludeEnv: cfg.excludeEnv, Log: log,
		Discovery: found}
	var ready atomic.Bool
	g.Go(func() error { return hook.Serve(ctx, cfg.webhook) })
	g.Go(func() error { return serveHTTP(ctx, cfg.listen, srv, &ready) })
	g.Go(func() error { return control.Run(ctx) })
	g.Go(func() error { lease.GiveBack(ctx); return nil })
	g.Go(func() error {
		info := lease.Info{Version: version, InstallationID: installation, Pin: string(id.Pin()), Filters: true, CopyFilters: true, ExcludeEnv: cfg.excludeEnv}
		return publish(ctx, client, cfg.namespace, info, found, hook, log)
	})
	ready.Store(true)
	log.Info("manager runs", "version", version, "namespace", cfg.namespace, "pin", id.Pin())
	return g.Wait()
}

func connect(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig) // "" and "": in the cluster
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	cfg.UserAgent = name + "/" + version
	cfg.QPS, cfg.Burst = 100, 200
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return client, nil
}

// addresses are where agents reach the manager: the Service's address, which
// needs no DNS, then its name, for the day that the Service was made anew.
func addresses(svc *corev1.Service) []string {
	port := strconv.Itoa(lease.ManagerPort)
	host := net.JoinHostPort(svc.Name+"."+svc.Namespace, port)
	if ip := net.ParseIP(svc.Spec.ClusterIP); ip != nil {
		return []string{net.JoinHostPort(ip.String(), port), host}
	}
	return []string{host}
}

// serveHTTP serves the tunnel endpoint and the health checks until ctx ends,
// and waits for the sessions.
func serveHTTP(ctx context.Context, addr string, srv *tunnelserver.Server, ready *atomic.Bool) error {
	mux := http.NewServeMux()
	mux.Handle(tunnel.Path, srv)
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() || ctx.Err() != nil {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for tunnels: %w", err)
	}
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve tunnels: %w", err)
	}
	srv.Wait()
	return nil
}

// publish tests the webhook and says in the ConfigMap who and how the manager
// is: at first until the webhook is reached, then now and again.
func publish(ctx context.Context, client kubernetes.Interface, namespace string, info lease.Info, found *discovery.Discovery, hook *webhook.Webhook, log *slog.Logger) error {
	wait, before := selfTestFirst, ""
	for {
		info.Webhook = "ok"
		if err := hook.SelfTest(ctx, true); err != nil {
			info.Webhook = err.Error()
		} else {
			wait = selfTestEvery
		}
		if ctx.Err() != nil {
			return nil
		}
		if info.Webhook != before {
			log.Info("admission webhook tested", "outcome", info.Webhook)
		}
		info.Direct = found.Direct(ctx, namespace)
		if err := identity.Publish(ctx, client, namespace, info); err != nil {
			log.Warn("info not published", "err", err)
		}
		if before = info.Webhook; before != "ok" {
			wait = min(2*wait, selfTestEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
