package nodeimage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/deploy/devcluster/cachedir"
	"berth.dev/deploy/devcluster/engine"
	"berth.dev/deploy/devcluster/rootfs"
)

// Repository is the node image's name in the engine; its tag is the key.
const Repository = "berth-devcluster-node"

// Say tells the user that something slow begins.
type Say = func(format string, args ...any)

// debian is the node's root file system: what containerd, CNI and the kubelet
// call, and what a person wants at hand in a `docker exec`.
var debian = rootfs.Spec{
	Name:    "node-rootfs",
	Variant: "essential",
	Packages: []string{"containerd", "runc", "containernetworking-plugins", "iptables", "nftables", "iproute2",
		"conntrack", "mount", "util-linux", "ethtool", "kmod", "procps", "ca-certificates"},
	Exclude: []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"},
}

// Image says which node image this checkout needs and where its parts are.
type Image struct {
	Tag     string // with the repository
	source  string
	cache   string
	modules map[string]string // name → key
}

// Plan computes the image's name; it builds nothing. source is the folder
// deploy/devcluster.
func Plan(ctx context.Context, source, cache string) (Image, error) {
	image := Image{source: source, cache: cache, modules: map[string]string{}}
	k := cachedir.NewKey("node image 1")
	root, err := debian.Key()
	if err != nil {
		return image, err
	}
	k.Add(root)
	for _, m := range modules {
		key, err := m.key(ctx, source)
		if err != nil {
			return image, err
		}
		image.modules[m.name] = key
		k.Add(m.name, key)
	}
	image.Tag = Repository + ":" + k.String()
	return image, nil
}

// Kubectl is the path of the kubectl built with the cluster; it exists once
// Ensure has succeeded.
func (i Image) Kubectl() string {
	return filepath.Join(i.cache, "kubernetes-"+i.modules["kubernetes"], "kubectl")
}

// Ensure makes the image if the engine has none of that name.
func (i Image) Ensure(ctx context.Context, say Say) error {
	id, err := engine.ImageID(ctx, i.Tag)
	if err != nil {
		return err
	}
	if _, err := os.Stat(i.Kubectl()); id != "" && err == nil {
		return nil
	}
	files := map[string]string{} // path in the image → path here
	for _, m := range modules {
		dir, err := m.build(ctx, i.source, i.cache, i.modules[m.name], say)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list binaries: %w", err)
		}
		for _, e := range entries {
			files[e.Name()] = filepath.Join(dir, e.Name())
		}
	}
	if id != "" {
		return nil
	}
	root, err := debian.Tar(ctx, i.cache, say)
	if err != nil {
		return err
	}
	archives, err := os.MkdirTemp("", "berth-node-image-")
	if err != nil {
		return fmt.Errorf("make node image: %w", err)
	}
	defer os.RemoveAll(archives)
	for _, name := range []string{"pause", "coredns"} {
		archive := filepath.Join(archives, name+".tar")
		if err := imageArchive(archive, "localhost/"+name+":v1", files[name]); err != nil {
			return err
		}
	}
	say("importing the node image (some 10 s)")
	return i.load(ctx, root, files, archives)
}

// RemoveOthers removes node images of other checkouts and times, half a gigabyte
// each. One that is in use stays.
func (i Image) RemoveOthers(ctx context.Context) error {
	list, err := engine.Run(ctx, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", Repository)
	if err != nil {
		return fmt.Errorf("list node images: %w", err)
	}
	for tag := range strings.FieldsSeq(list) {
		if tag != i.Tag {
			engine.Run(ctx, "image", "rm", tag) // refused while a container uses it
		}
	}
	return nil
}

// load streams one tar into the engine: the root file system, then the rest.
// `docker import` makes an image of it in one layer, with any engine, without
// a builder.
func (i Image) load(ctx context.Context, root string, files map[string]string, archives string) error {
	read, write := io.Pipe()
	go func() { write.CloseWithError(i.stream(write, root, files, archives)) }()
	_, err := engine.Pipe(ctx, read, nil, "import",
		"--change", `ENTRYPOINT ["/usr/local/bin/noded"]`,
		"--change", "LABEL berth.dev/devcluster=true",
		"--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin KUBECONFIG=/var/lib/berth-node/pki/admin.kubeconfig",
		"-", i.Tag)
	read.Close()
	return err
}

func (i Image) stream(to io.Writer, root string, files map[string]string, archives string) error {
	w := tar.NewWriter(to)
	if err := copyTar(w, root); err != nil {
		return err
	}
	for _, name := range []string{"hyperkube", "etcd", "kubectl", "noded"} {
		if err := addFile(w, "usr/local/bin/"+name, files[name], 0o755); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/local/bin/runc-restricted", Linkname: "noded", Mode: 0o777}); err != nil {
		return fmt.Errorf("write node image: %w", err)
	}
	for _, name := range []string{"pause", "coredns"} {
		if err := addFile(w, "opt/berth/images/"+name+".tar", filepath.Join(archives, name+".tar"), 0o644); err != nil {
			return err
		}
	}
	return w.Close()
}

// copyTar copies the entries of a tar file, so that more can follow them.
// Device nodes are left out: the engine makes its own /dev.
func copyTar(w *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read root file system: %w", err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read root file system: %w", err)
		}
		if header.Typeflag == tar.TypeChar || header.Typeflag == tar.TypeBlock {
			continue
		}
		if err := w.WriteHeader(header); err != nil {
			return fmt.Errorf("copy %s: %w", header.Name, err)
		}
		if _, err := io.Copy(w, r); err != nil {
			return fmt.Errorf("copy %s: %w", header.Name, err)
		}
	}
}
