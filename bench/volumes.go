package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"berth.dev/deploy/devcluster/cachedir"
	"berth.dev/deploy/devcluster/rootfs"
	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	sshImage = "berth-bench-ssh:latest"
	sshBase  = "berth-bench-sshd:latest"
	filesPod = `apiVersion: apps/v1
kind: Deployment
metadata: {name: berth-bench-files}
spec:
  selector: {matchLabels: {app: berth-bench-files}}
  template:
    metadata: {labels: {app: berth-bench-files}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: load, image: "berth-bench:latest", imagePullPolicy: IfNotPresent, args: [serve, "7101"], volumeMounts: [{name: files, mountPath: /files}]}
      - {name: ssh, image: "berth-bench-ssh:latest", imagePullPolicy: IfNotPresent, volumeMounts: [{name: files, mountPath: /files}]}
      volumes: [{name: files, emptyDir: {}}]
`
)

// sshd is a server for sshfs, as Debian has it.
var sshd = rootfs.Spec{
	Name: "bench-sshd", Variant: "extract", Packages: []string{"openssh-server", "openssh-sftp-server", "dash", "base-files"},
	Setup: []string{`for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done`},
	Hooks: []string{
		`cd "$1" && mkdir -p run/sshd root etc/ssh var/empty tmp`,
		`echo 'root:x:0:0:root:/root:/bin/sh
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' > "$1/etc/passwd"`,
		`echo 'root:x:0:
nogroup:x:65534:' > "$1/etc/group"`,
		`cd "$1" && rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/perl5`,
	},
}

// volumes measures a volume in a handler against sshfs to the same pod through
// kubectl port-forward, both mounted freshly for each round, by turns. The limit
// is the same program in the pod.
func (b *bench) volumes(ctx context.Context) error {
	if _, err := exec.LookPath("sshfs"); err != nil {
		return errors.New("sshfs is missing: `make bench STEPS=volumes` installs it on Debian (package sshfs)")
	}
	key, err := b.sshServer(ctx)
	if err != nil {
		return err
	}
	remove, err := b.deploy(ctx, "berth-bench-files", filesPod)
	if err != nil {
		return err
	}
	defer remove()
	if _, err := out(ctx, b.ctl, "connect", "--docker", "--name", "bench"); err != nil { // no change where it is up
		return err
	}
	pod, err := b.filesPod(ctx)
	if err != nil {
		return err
	}
	if _, err := b.cluster.Exec(ctx, "default", pod, "load", "/load", "make", "/files"); err != nil {
		return err
	}
	var ours, ssh, direct figures
	for range 3 {
		for _, m := range []struct {
			to   *figures
			read func(context.Context, string, string) (string, error)
		}{{&ours, b.readByBerth}, {&ssh, b.readBySSH}, {&direct, b.readInPod}} {
			o, err := m.read(ctx, pod, key)
			if err != nil {
				return err
			}
			if n := numbers(o); len(n) == len(volumeRows) {
				*m.to = append(*m.to, n)
			} else {
				return fmt.Errorf("want %d figures: %s", len(volumeRows), o)
			}
		}
	}
	for i, r := range volumeRows {
		x, y, z := ours.median(i), ssh.median(i), direct.median(i)
		b.add(r.figure, fmt.Sprintf("%.0f ms", x), fmt.Sprintf("%.0f ms", y), fmt.Sprintf("%.0f ms", z), ratio(y, x), r.target+" sshfs")
	}
	return nil
}

var volumeRows = []struct{ figure, target string }{
	{"volume: 1 GB, sequential read", ">= 1.5 x"},
	{"volume: stat of 10,000 files", ">= 3 x"},
	{"volume: 10,000 small reads", ">= 3 x"},
}

// figures are those of `load read`, of several rounds.
type figures [][]float64

func (f figures) median(i int) float64 {
	var all []float64
	for _, round := range f {
		all = append(all, round[i])
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// filesPod is the pod with the files; an ingest may exchange it, and then the
// files are gone.
func (b *bench) filesPod(ctx context.Context) (string, error) {
	pods, err := b.cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=berth-bench-files"})
	if err != nil {
		return "", err
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil && rig.Ready(&p) {
			return p.Name, nil
		}
	}
	return "", errors.New("there is no pod with the files")
}

func (b *bench) readByBerth(ctx context.Context, _, _ string) (string, error) {
	cmd := exec.CommandContext(ctx, b.ctl, "ingest", "berth-bench-files", "--container", "load", "--docker-run", "--", image, "read", "/files")
	var progress bytes.Buffer
	cmd.Stderr = &progress
	o, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ctl ingest: %w\n%s", err, progress.String())
	}
	return string(o), nil
}

func (b *bench) readInPod(ctx context.Context, pod, _ string) (string, error) {
	return b.cluster.Exec(ctx, "default", pod, "load", "/load", "read", "/files")
}

func (b *bench) readBySSH(ctx context.Context, pod, key string) (_ string, err error) {
	stop, err := b.forward(ctx, pod, "17122", "22")
	if err != nil {
		return "", err
	}
	defer stop()
	dir := filepath.Join(b.dir, "sshfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if _, err := out(ctx, "sshfs", "-p", "17122", "-o", "IdentityFile="+key+",StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR", "root@127.0.0.1:/files", dir); err != nil {
		return "", err
	}
	defer func() {
		_, uerr := out(context.WithoutCancel(ctx), "fusermount3", "-u", dir)
		err = errors.Join(err, uerr)
	}()
	return out(ctx, b.load, "read", dir)
}

// sshServer makes the image of the server, with keys of this run, and returns the
// client's.
func (b *bench) sshServer(ctx context.Context) (key string, err error) {
	cache, err := cachedir.Root()
	if err != nil {
		return "", err
	}
	tar, err := sshd.Tar(ctx, cache, func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) })
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.dir, "ssh")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	key = filepath.Join(dir, "client")
	const dockerfile = "FROM " + sshBase + `
COPY host /etc/ssh/host
COPY client.pub /root/.ssh/authorized_keys
WORKDIR /run/sshd
ENTRYPOINT ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", "/etc/ssh/host", "-o", "PermitRootLogin=yes", "-o", "UsePAM=no", "-o", "Subsystem=sftp /usr/lib/openssh/sftp-server"]
`
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return "", err
	}
	steps := [][]string{
		{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key},
		{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "host")},
		{"docker", "import", tar, sshBase},
		{"docker", "build", "-q", "-t", sshImage, dir},
	}
	if load := os.Getenv("BERTH_LOAD"); load != "" {
		steps = append(steps, []string{"sh", "-c", load + " " + sshImage})
	}
	b.undo = append(b.undo, func() { _, _ = out(context.Background(), "docker", "rmi", "-f", sshImage, sshBase) })
	for _, s := range steps {
		if _, err := out(ctx, s...); err != nil {
			return "", err
		}
	}
	return key, nil
}
