package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// run starts the node and keeps it until SIGTERM. On the way out the API's
// processes go first and etcd last, so that it has nothing left to write.
func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := prepareKernel(); err != nil {
		return err
	}
	n, err := discover()
	if err != nil {
		return err
	}
	slog.Info("starting", "node", n.describe())
	if err := prepareCertificates(n); err != nil {
		return err
	}
	if err := writeConfigs(n); err != nil {
		return err
	}
	if err := startLogs(); err != nil {
		return err
	}

	all := components(n)
	serve, err := serveStatus(n, all)
	if err != nil {
		return err
	}
	defer serve.Close()

	etcdCtx, stopEtcd := context.WithCancel(context.Background())
	defer stopEtcd()
	var etcd, others sync.WaitGroup
	for _, c := range all {
		group, lifetime := &others, ctx
		if c.name == "etcd" {
			group, lifetime = &etcd, etcdCtx
		}
		group.Go(func() {
			for _, earlier := range c.after {
				if earlier.awaitReady(ctx) != nil {
					return
				}
			}
			c.keep(lifetime, 3*time.Second)
		})
	}
	others.Go(func() { furnish(ctx, all) })

	<-ctx.Done()
	slog.Info("stopping")
	others.Wait()
	stopEtcd()
	etcd.Wait()
	return nil
}

// startLogs begins each log anew, keeping the last run's under another name.
func startLogs() error {
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", logDir, err)
	}
	logs, _ := filepath.Glob(filepath.Join(logDir, "*.log"))
	for _, l := range logs {
		if err := os.Rename(l, l+".old"); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	return nil
}

// furnish brings in what is not a process: the node's own images, then the
// objects of manifest.yaml. It retries until it succeeds, since both depend on
// components that may be restarting.
func furnish(ctx context.Context, all []*component) {
	steps := []struct {
		name  string
		after string
		do    func(context.Context) error
	}{
		{"import images", "containerd", importImages},
		{"apply manifest", "apiserver", applyManifest},
	}
	var group sync.WaitGroup
	for _, s := range steps {
		group.Go(func() {
			for _, c := range all {
				if c.name == s.after && c.awaitReady(ctx) != nil {
					return
				}
			}
			for ctx.Err() == nil {
				err := s.do(ctx)
				if err == nil {
					slog.Info("done", "step", s.name)
					return
				}
				slog.Warn("will try again", "step", s.name, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	group.Wait()
}

// importImages loads the archives that came with the node, unless containerd
// has them from an earlier run.
func importImages(ctx context.Context) error {
	archives, err := filepath.Glob(filepath.Join(imagesDir, "*.tar"))
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, a := range archives {
		if err := command(ctx, "ctr", "-n", "k8s.io", "images", "import", a); err != nil {
			return err
		}
	}
	return nil
}

// applyManifest uses kubectl's own apply, which creates and updates alike.
func applyManifest(ctx context.Context) error {
	return command(ctx, "kubectl", "--kubeconfig", kubeconfigFile("admin"), "apply",
		"--server-side", "--force-conflicts", "-f", filepath.Join(configDir, "manifest.yaml"))
}

func command(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
