package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"berth.dev/deploy/devcluster/engine"
)

// Load copies images from the engine into the cluster, all that it does not
// have yet in one stream. Pods use them with imagePullPolicy Never or
// IfNotPresent.
func Load(ctx context.Context, images []string, say func(format string, args ...any)) error {
	have, err := loaded(ctx)
	if err != nil {
		return fmt.Errorf("list the cluster's images: %w\nIs the cluster up? Type: devcluster up", err)
	}
	var missing []string
	for _, image := range images {
		id, err := engine.ImageID(ctx, image)
		if err != nil {
			return err
		}
		if id == "" {
			return fmt.Errorf("load %s: the engine has no such image; build or pull it first", image)
		}
		if !have[tagged{normalize(image), id}] {
			missing = append(missing, image)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	say("loading %v", missing)
	saving, stop := context.WithCancel(ctx)
	defer stop()
	save := exec.CommandContext(saving, "docker", append([]string{"save"}, missing...)...)
	var stderr bytes.Buffer
	save.Stderr = &stderr
	stream, err := save.StdoutPipe()
	if err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	if err := save.Start(); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	_, importErr := engine.Pipe(ctx, stream, nil, "exec", "--interactive", Name, "ctr", "-n", "k8s.io", "images", "import", "-")
	if importErr != nil {
		// Nobody reads the stream any more: its writer would wait for ever.
		stop()
		save.Wait()
		return fmt.Errorf("import images: %w\n%s", importErr, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := save.Wait(); err != nil {
		return fmt.Errorf("docker save %v: %w\n%s", missing, err, stderr.String())
	}
	return nil
}

// tagged is a name together with the image it stands for.
type tagged struct{ name, id string }

// loaded lists the images in the cluster. Kubernetes's runtime keeps, for every
// name, a second record that is named by the digest of the image's
// configuration, with the same target. That digest is the image ID of an engine
// with a classic image store; one that stores images in containerd uses the
// target's own.
func loaded(ctx context.Context) (map[tagged]bool, error) {
	out, err := engine.Run(ctx, "exec", Name, "ctr", "-n", "k8s.io", "images", "ls")
	if err != nil {
		return nil, err
	}
	return parseImages(out), nil
}

// parseImages reads the columns REF, TYPE, DIGEST of `ctr images ls`.
func parseImages(out string) map[tagged]bool {
	names := map[string][]string{}   // target → names
	configs := map[string][]string{} // target → configuration digests
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[2], "sha256:") {
			continue
		}
		if strings.HasPrefix(f[0], "sha256:") {
			configs[f[2]] = append(configs[f[2]], f[0])
		} else {
			names[f[2]] = append(names[f[2]], f[0])
		}
	}
	have := map[tagged]bool{}
	for target, list := range names {
		for _, name := range list {
			have[tagged{name, target}] = true
			for _, config := range configs[target] {
				have[tagged{name, config}] = true
			}
		}
	}
	return have
}

// normalize gives an image name the registry, folder and tag that are implied
// when they are left out: "demo" is docker.io/library/demo:latest.
func normalize(image string) string {
	first, _, nested := strings.Cut(image, "/")
	switch {
	case !nested:
		image = "docker.io/library/" + image
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		image = "docker.io/" + image
	}
	if last := image[strings.LastIndex(image, "/")+1:]; !strings.ContainsAny(last, ":@") {
		image += ":latest"
	}
	return image
}
