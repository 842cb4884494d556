package main

import (
	"context"
	"os"

	"berth.dev/deploy/devcluster/cachedir"
	"berth.dev/deploy/devcluster/engine"
	"berth.dev/deploy/devcluster/rootfs"
)

// debian is the base of the local image: curl, the fuse mount program and the
// certificates of the usual authorities, with a shell and BusyBox to look around. The packages
// are only unpacked: an image needs no package manager and none of the accounts
// and services that installing sets up. The hooks do what is left of that.
var debian = rootfs.Spec{
	Name:     "image-base",
	Variant:  "extract",
	Packages: []string{"curl", "ca-certificates", "fuse3", "dash", "busybox-static", "base-files", "netbase"},
	Setup: []string{
		// Merged /usr, as on every Debian since 12.
		`for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done`,
	},
	Hooks: []string{
		// What base-files makes when it is installed.
		`cd "$1" && mkdir -p mnt media opt srv root var/lib var/cache var/log var/tmp && chmod 1777 tmp var/tmp && rm -rf var/run && ln -s /run var/run`,
		`cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt"`,
		`echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin' > "$1/etc/passwd"`,
		`echo 'root:x:0:
nogroup:x:65534:' > "$1/etc/group"`,
		`for tool in $("$1/bin/busybox" --list); do
			test -e "$1/usr/bin/$tool" || test -e "$1/usr/sbin/$tool" || ln -s busybox "$1/usr/bin/$tool"
		done`,
		`chmod 4755 "$1/usr/bin/fusermount3"`,
		`cd "$1" && rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian \
			usr/share/perl5 usr/share/zsh usr/share/bash-completion usr/share/initramfs-tools`,
	},
}

// base returns the name of the base image, making it if the engine has none.
func base(ctx context.Context, say func(format string, args ...any)) (string, error) {
	key, err := debian.Key()
	if err != nil {
		return "", err
	}
	name := "berth-base:" + key
	if id, err := engine.ImageID(ctx, name); id != "" || err != nil {
		return name, err
	}
	cache, err := cachedir.Root()
	if err != nil {
		return "", err
	}
	unlock, err := cachedir.Lock(cache, func() { say("waiting for another build to end") })
	if err != nil {
		return "", err
	}
	defer unlock()
	path, err := debian.Tar(ctx, cache, say)
	if err != nil {
		return "", err
	}
	tar, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer tar.Close()
	_, err = engine.Pipe(ctx, tar, nil, "import",
		"--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"--change", `CMD ["/bin/sh"]`,
		"-", name)
	return name, err
}
