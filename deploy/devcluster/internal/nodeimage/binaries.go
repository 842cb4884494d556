// Package nodeimage makes the image of the devcluster's node: a Debian root file
// system, Kubernetes and its company as static binaries built from source, and
// archives of the two images that every node needs. Each part is cached under a
// key of its own, so a change to noded rebuilds noded and nothing else.
package nodeimage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth.dev/deploy/devcluster/cachedir"
)

// kubernetesVersion is for the ldflags only: node/go.mod decides what is built.
const kubernetesVersion = "v1.34.4"

// binaries is a Go module whose commands go into the node image.
type binaries struct {
	name     string   // prefix of the cache entry
	dir      string   // of the module, relative to the source folder
	packages []string // commands to build; each is named by its folder
	sources  []string // folders that the key covers, relative to the source folder
	ldflags  string
	notice   string // said before a build
}

var modules = []binaries{
	{
		name: "kubernetes", dir: "node", packages: []string{"./hyperkube", "./etcd", "./kubectl", "./pause"},
		sources: []string{"node"},
		ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34",
		notice: "building Kubernetes " + kubernetesVersion + " (some 6 minutes on 2 cores, once)",
	},
	{
		name: "coredns", dir: "coredns", packages: []string{"."},
		sources: []string{"coredns"},
		ldflags: "-s -w",
		notice:  "building CoreDNS (about a minute, once)",
	},
	{
		name: "noded", dir: ".", packages: []string{"./noded"},
		sources: []string{"noded", "internal/pki", "internal/kubeconfig"},
		ldflags: "-s -w",
		notice:  "building noded",
	},
}

// key names the build by the module's sources and sums, the flags and the
// toolchain.
func (b binaries) key(ctx context.Context, source string) (string, error) {
	toolchain, err := goCommand(ctx, filepath.Join(source, b.dir), "env", "GOVERSION", "GOOS", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("ask the Go toolchain for its version: %w", err)
	}
	k := cachedir.NewKey("binaries")
	k.Add(b.name, b.ldflags, string(toolchain))
	k.Add(b.packages...)
	for _, s := range b.sources {
		if err := k.AddGo(filepath.Join(source, s)); err != nil {
			return "", err
		}
	}
	return k.String(), nil
}

// build returns the folder with the binaries, building them if the cache has none.
func (b binaries) build(ctx context.Context, source, cache, key string, say Say) (string, error) {
	dir := filepath.Join(cache, b.name+"-"+key)
	err := cachedir.Fill(dir, func(tmp string) error {
		say("%s", b.notice)
		args := append([]string{"build", "-trimpath", "-ldflags", b.ldflags, "-o", tmp + "/"}, b.packages...)
		if out, err := goCommand(ctx, filepath.Join(source, b.dir), args...).CombinedOutput(); err != nil {
			return fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), b.dir, err, out)
		}
		return nil
	})
	return dir, err
}

// goCommand runs the toolchain on one module alone: in a workspace the replace
// lines that Kubernetes needs would apply to every other module too.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux")
	return cmd
}
