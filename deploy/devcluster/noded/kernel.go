package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// prepareKernel makes of the container's mounts, cgroups and sysctls what the
// kubelet expects of a machine's. It can be called again on a restarted container.
func prepareKernel() error {
	// Mounts made by the kubelet must reach containerd's containers and, with
	// mountPropagation, come back.
	if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	if err := prepareCgroups(); err != nil {
		return err
	}
	for _, key := range []string{
		"net/ipv4/ip_forward",
		"net/ipv6/conf/all/forwarding",
	} {
		path := filepath.Join("/proc/sys", key)
		if _, err := os.Stat(path); err != nil {
			continue // no IPv6 in this kernel
		}
		if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s: %w", key, err)
		}
	}
	return nil
}

const cgroupRoot = "/sys/fs/cgroup"

// prepareCgroups makes the container's cgroups writable, whatever their version.
// The container has a cgroup namespace of its own, so whatever is made in there
// is below the container's cgroup outside and goes away with it.
func prepareCgroups() error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	unified := false
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], cgroupRoot) {
			continue
		}
		if f[1] == cgroupRoot && f[2] == "cgroup2" {
			unified = true
		}
		if strings.HasPrefix(f[3], "ro") {
			if err := syscall.Mount("", f[1], "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
				return fmt.Errorf("make %s writable: %w", f[1], err)
			}
		}
	}
	if !unified {
		return nil
	}
	// In version 2 only a cgroup without processes may hand its controllers
	// down, so everything moves to a leaf first.
	leaf := filepath.Join(cgroupRoot, "init")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return fmt.Errorf("make cgroup for the node's own processes: %w", err)
	}
	pids, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("list processes of the root cgroup: %w", err)
	}
	for _, pid := range bytes.Fields(pids) {
		// A process that has ended meanwhile is no failure.
		os.WriteFile(filepath.Join(leaf, "cgroup.procs"), pid, 0o644)
	}
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("hand cgroup controller %s down: %w", c, err)
		}
	}
	return nil
}

// overlayWorks tries an overlay mount where containerd will want them: it fails
// where /var is itself an overlay. containerd then copies layers instead.
func overlayWorks() bool {
	dir, err := os.MkdirTemp("/var/lib", "overlay-probe-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if os.Mkdir(filepath.Join(dir, d), 0o755) != nil {
			return false
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if syscall.Mount("overlay", merged, "overlay", 0, options) != nil {
		return false
	}
	return syscall.Unmount(merged, 0) == nil
}
