#!/usr/bin/env bash
# Makes sure that what Berth is built and tested with is here: Go, Docker's
# client and a running engine, git, with "test" what the tests look at the host
# with and run through Berth, and with "volumes" what the benchmark compares
# volumes with. Installs Debian packages where it may (root on Debian) and says
# what is missing where it may not. Changes nothing when all is there.
set -euo pipefail

say() { printf 'prepare: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

debian() { have apt-get && [ -e /etc/debian_version ]; }
install() { # install PACKAGE… — or tell how
	if debian && [ "$(id -u)" = 0 ]; then
		say "installing $*"
		export DEBIAN_FRONTEND=noninteractive
		apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
			{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
	elif debian; then
		die "missing: $*. Install with: sudo apt-get install $*"
	else
		die "missing: $* (names of the Debian packages). Install them with your system's package manager."
	fi
}

have go || die "Go is missing. Install Go $(sed -n 's/^go //p' go.work) or newer."
have git || install git
have docker || install docker.io

if ! docker info >/dev/null 2>&1; then
	if [ "$(id -u)" != 0 ]; then
		[ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ] &&
			die "no permission to use the Docker Engine. Try: sudo usermod -aG docker $(id -un), then log in again."
		die "the Docker Engine does not answer. Try: sudo systemctl start docker"
	fi
	say "starting the Docker Engine"
	if have systemctl && [ -d /run/systemd/system ]; then
		systemctl start docker
	else
		# No init system that could do it: start it as the service script would,
		# detached, so that it outlives this make.
		have dockerd || install docker.io
		setsid nohup dockerd >/var/log/dockerd-berth.log 2>&1 </dev/null &
	fi
	for _ in $(seq 300); do # probed ten times a second, for half a minute
		docker info >/dev/null 2>&1 && break
		sleep 0.1
	done
	docker info >/dev/null 2>&1 || die "the Docker Engine did not start; see /var/log/dockerd-berth.log"
fi

case "${1:-}" in
volumes) # what volumes are compared with: bench's step of that name
	have sshfs || install sshfs
	have ssh-keygen || install openssh-client
	have mmdebstrap || install mmdebstrap
	;;
test)
	missing=()
	have ip || missing+=(iproute2)
	have iptables-save || missing+=(iptables)
	have nft || missing+=(nftables)
	have jq || missing+=(jq)
	# Programs of others' making, which e2e runs through Berth.
	have iperf3 || missing+=(iperf3)
	have h2load || missing+=(nghttp2-client)
	have nghttpd || missing+=(nghttp2-server)
	[ ${#missing[@]} = 0 ] || install "${missing[@]}"
	;;
esac
