package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"berth.dev/deploy/devcluster/cachedir"
	"berth.dev/deploy/devcluster/engine"
)

// image is one image to build.
type image struct {
	name       string
	dockerfile string
	programs   []string // those of them that are in the folder are copied
	base       string   // the build argument BASE, if the Dockerfile has one
}

// keyLabel holds the key of what an image was built from.
const keyLabel = "berth.dev/image-key"

func run(ctx context.Context, version, bin string) error {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "• "+format+"\n", args...) }
	debian, err := base(ctx, say)
	if err != nil {
		return fmt.Errorf("make the base image: %w", err)
	}
	for _, i := range []image{
		{name: "berth", dockerfile: "Dockerfile", base: debian,
			programs: []string{"connector", "vif", "runner", "builder", "telemount", "forwarder"}},
		{name: "berth-cluster", dockerfile: "Dockerfile.cluster",
			programs: []string{"manager", "agent"}},
	} {
		if err := i.build(ctx, version, bin, say); err != nil {
			return fmt.Errorf("make image %s: %w", i.name, err)
		}
	}
	return nil
}

// build makes the image name:version, unless it exists with the same key. An
// image of the same key under another version only gets another name.
func (i image) build(ctx context.Context, version, bin string, say func(format string, args ...any)) error {
	present, err := i.present(bin)
	if err != nil {
		return err
	}
	if len(present) == 0 {
		say("skipped %s: %s has none of %v", i.name, bin, i.programs)
		return nil
	}
	key, err := i.key(bin, present)
	if err != nil {
		return err
	}
	tag := i.name + ":" + version
	have, err := engine.Run(ctx, "image", "inspect", "--format", `{{index .Config.Labels "`+keyLabel+`"}}`, tag)
	if err == nil && have == key {
		return nil
	}
	same, err := engine.Run(ctx, "image", "ls", "--quiet", "--filter", "label="+keyLabel+"="+key, i.name)
	if err != nil {
		return err
	}
	if id := firstLine(same); id != "" {
		say("%s is unchanged", tag)
		_, err := engine.Run(ctx, "tag", id, tag)
		return err
	}

	// The binaries become a build context of their own: bin/ may hold others.
	dir, err := os.MkdirTemp("", "berth-image-")
	if err != nil {
		return fmt.Errorf("make build context: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		return fmt.Errorf("make build context: %w", err)
	}
	for _, p := range present {
		if err := copyFile(filepath.Join(dir, "bin", p), filepath.Join(bin, p)); err != nil {
			return err
		}
	}
	say("building %s: %v", tag, present)
	args := []string{"build", "--quiet", "--force-rm", "--tag", tag, "--label", keyLabel + "=" + key, "--file", i.dockerfile}
	if i.base != "" {
		args = append(args, "--build-arg", "BASE="+i.base)
	}
	_, err = engine.Run(ctx, append(args, dir)...)
	return err
}

// present lists which programs of the image the folder holds.
func (i image) present(bin string) ([]string, error) {
	var list []string
	for _, p := range i.programs {
		info, err := os.Stat(filepath.Join(bin, p))
		switch {
		case os.IsNotExist(err):
		case err != nil:
			return nil, fmt.Errorf("look for %s: %w", p, err)
		case info.Mode().IsRegular():
			list = append(list, p)
		}
	}
	return list, nil
}

// key names the image by its Dockerfile, its base and its binaries.
func (i image) key(bin string, present []string) (string, error) {
	k := cachedir.NewKey("image")
	k.Add(i.name, i.base)
	files := []string{i.dockerfile}
	for _, p := range present {
		files = append(files, filepath.Join(bin, p))
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", f, err)
		}
		k.Add(filepath.Base(f), string(content))
	}
	return k.String(), nil
}

// copyFile copies a program and makes it executable, whatever its mode was.
func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy program: %w", err)
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("copy program: %w", err)
	}
	if _, err := io.Copy(target, source); err != nil {
		target.Close()
		return fmt.Errorf("copy program: %w", err)
	}
	return target.Close()
}

// firstLine is the first of the lines that docker printed, or "".
func firstLine(out string) string {
	for n, c := range out {
		if c == '\n' {
			return out[:n]
		}
	}
	return out
}
