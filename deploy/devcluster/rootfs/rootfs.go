// Package rootfs makes small Debian root file systems without a container
// registry: mmdebstrap unpacks packages from the archive this machine itself is
// configured to use, and the result is a tar file for `docker import`.
//
// It holds no archive's address. The sources, the suite and the keys are the
// machine's: /etc/apt/sources.list, /etc/apt/sources.list.d and os-release.
package rootfs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"berth.dev/deploy/devcluster/cachedir"
)

// Spec says what goes into a root file system. All of it is part of its key.
type Spec struct {
	Name     string   // prefix of the cache entry
	Variant  string   // mmdebstrap's --variant
	Packages []string // Debian packages
	Exclude  []string // dpkg path-exclude patterns
	Setup    []string // shell lines before anything is unpacked; $1 is the root
	Hooks    []string // shell lines after variant "extract" unpacked everything; $1 is the root
}

// Key names the result: the specification and the suite it is made from. A
// newer package in the archive does not change it; to get those, remove the
// cache entry.
func (s Spec) Key() (string, error) {
	suite, err := suite()
	if err != nil {
		return "", err
	}
	k := cachedir.NewKey("rootfs")
	k.Add(s.Name, s.Variant, suite)
	for _, list := range [][]string{s.Packages, s.Exclude, s.Setup, s.Hooks} {
		k.Add(strconv.Itoa(len(list)))
		k.Add(list...)
	}
	return k.String(), nil
}

// Tar returns the path of the tar file, making it if the cache has none.
// say gets a line whenever something slow starts.
func (s Spec) Tar(ctx context.Context, cache string, say func(format string, args ...any)) (string, error) {
	key, err := s.Key()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, s.Name+"-"+key)
	err = cachedir.Fill(dir, func(tmp string) error {
		if err := needMmdebstrap(ctx, say); err != nil {
			return err
		}
		say("unpacking %d Debian packages and what they need (some 40 s)", len(s.Packages))
		return s.make(ctx, filepath.Join(tmp, "rootfs.tar"))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "rootfs.tar"), nil
}

func (s Spec) make(ctx context.Context, tarFile string) error {
	suite, err := suite()
	if err != nil {
		return err
	}
	sources, err := sources("/etc/apt")
	if err != nil {
		return err
	}
	args := []string{"--mode=auto", "--variant=" + s.Variant, "--include=" + strings.Join(s.Packages, ",")}
	for _, e := range s.Exclude {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	for _, h := range s.Setup {
		args = append(args, "--setup-hook="+h)
	}
	for _, h := range s.Hooks {
		args = append(args, "--extract-hook="+h)
	}
	args = append(args, suite, tarFile)
	args = append(args, sources...)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s\nIt fetches packages from the archives in /etc/apt; check that `apt-get update` works. Without root it needs user namespaces and /etc/subuid",
			strings.Join(args, " "), err, tail(out, 15))
	}
	return nil
}

// suite is the release this machine runs, such as "bookworm".
func suite() (string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("find the Debian release of this machine: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "VERSION_CODENAME="); ok && name != "" {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", fmt.Errorf("/etc/os-release names no VERSION_CODENAME: this needs a Debian or Ubuntu machine")
}

// sources lists the apt source files under etc, for mmdebstrap to read in turn.
func sources(etc string) ([]string, error) {
	var found []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		files, err := filepath.Glob(filepath.Join(etc, pattern))
		if err != nil {
			return nil, fmt.Errorf("list apt sources: %w", err)
		}
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read apt source: %w", err)
			}
			if distribution(content) {
				found = append(found, f)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no apt sources of the distribution in %s: this needs a Debian or Ubuntu machine", etc)
	}
	sort.Strings(found)
	return found, nil
}

// distribution reports whether an apt source file is of the distribution's own
// archive. Third parties' archives would be asked for base packages in vain,
// and may be signed with keys that mmdebstrap is not given.
func distribution(content []byte) bool {
	for _, line := range bytes.Split(content, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if bytes.HasPrefix(line, []byte("#")) {
			continue
		}
		l := strings.ToLower(string(line))
		if (strings.HasPrefix(l, "deb ") || strings.HasPrefix(l, "uris:")) &&
			(strings.Contains(l, "/debian") || strings.Contains(l, "/ubuntu")) {
			return true
		}
	}
	return false
}

// needMmdebstrap installs mmdebstrap where it may, and says how where it may not.
func needMmdebstrap(ctx context.Context, say func(format string, args ...any)) error {
	if _, err := exec.LookPath("mmdebstrap"); err == nil {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("mmdebstrap is not installed, nor is apt-get: build on a Debian or Ubuntu machine")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("mmdebstrap is not installed; type: sudo apt-get install mmdebstrap")
	}
	say("installing mmdebstrap")
	lists, _ := filepath.Glob("/var/lib/apt/lists/*_Packages*")
	commands := [][]string{{"install", "-y", "-q", "--no-install-recommends", "mmdebstrap"}}
	if len(lists) == 0 {
		commands = append([][]string{{"update", "-q"}}, commands...)
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, tail(out, 15))
		}
	}
	return nil
}

// tail is the last n lines of a command's output.
func tail(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
