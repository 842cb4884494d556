package handler

//go:generate go run ../flagdoc ../../../../docs/docker-run.md

// Treatment is what becomes of a flag of `docker run`.
type Treatment int

// The treatments.
const (
	Passed  Treatment = iota // as in Docker
	Made                     // Docker refuses it beside a shared network; here it works
	Differs                  // works, with a difference
	Refused
)

// Flag is a flag of `docker run` and what becomes of it.
type Flag struct {
	Name      string // --network, or --network host for one of its values
	Treatment Treatment
	Note      string // how, or why not
}

// Flags are all flags of `docker run`, by treatment. Package handlerrun of ctl
// checks that they are all: its Docker knows them.
func Flags() []Flag {
	flags := []Flag{
		{"--publish, -p", Made, "TCP and UDP, one address or all, IPv6, ranges, a random port of the host: a forwarder owns the port, and carries to 127.0.0.1 and wherever else the port is listened on. `docker ps` and `docker port` show it at the container `berth-ports-…-front`; the command prints `published HOST -> PORT`. The program sees connections from loopback"},
		{"--publish-all, -P", Made, "what the image declares with EXPOSE, and what `--expose` adds"},
		{"--expose", Made, "is for `-P`; whoever is on a network of the container reaches all of its ports anyway, as in Docker"},
		{"--network NAME", Made, "also `bridge`, repeated, and in the long form `name=…,alias=…`: the daemon container joins the network for as long as the container lives. The container's name is a name there. All containers of a connection have one address in a network; one that brings more names to a network that another has joined has it left and joined again, which cuts connections through it for a moment"},
		{"--network-alias", Made, "in a network that was named"},
		{"--ip, --ip6, --link-local-ip", Made, "in a network that was named, and that no other container of the connection has joined with another address"},
		{"--mac-address", Made, "in a network that was named, with Docker Engine 25 and newer"},
		{"--link", Made, "in a network that was named"},
		{"--rm", Differs, "is implied; `--rm=false` is refused: without its network a container that has ended is of no use"},
		{"--name", Differs, "`intercept-WORKLOAD-PORT` for a handler unless it is given. A dead container of Berth's own that has the name gives way"},
		{"--env, -e, --env-file", Differs, "win over the remote environment that a handler has"},
		{"--volume, -v, --mount, --tmpfs", Differs, "win over a remote volume at the same path"},
		{"--detach, -d", Differs, "with `ctl docker-run`; a handler runs in the foreground, as long as its engagement"},
		{"--sig-proxy", Differs, "with `ctl docker-run`; a signal to the command ends a handler's engagement, and that the handler, with its stop signal"},
		{"--detach-keys", Differs, "for a handler, to detach is to end the engagement"},
		{"--label, -l, --label-file", Differs, "but for `berth.dev/…`"},
		{"--sysctl", Differs, "`net.…` is set in the connection's network, for all its containers"},
		{"--cap-add, --privileged", Differs, "rights over the network are rights over the connection's, which all its containers share"},
	}
	for _, r := range refusals() {
		flags = append(flags, Flag{r.flag, Refused, r.why})
	}
	flags = append(flags,
		Flag{"--publish 80/sctp", Refused, "a port is forwarded into the connection's network, which can be done with TCP and UDP"})
	for _, name := range passed {
		flags = append(flags, Flag{"--" + name, Passed, ""})
	}
	return flags
}

// passed have nothing to do with the network, or with what Berth adds.
var passed = []string{
	"annotation", "attach, -a", "blkio-weight", "blkio-weight-device", "cap-drop", "cgroup-parent", "cgroupns", "cidfile", "cpu-count", "cpu-percent",
	"cpu-period", "cpu-quota", "cpu-rt-period", "cpu-rt-runtime", "cpu-shares, -c", "cpus", "cpuset-cpus", "cpuset-mems", "device", "device-cgroup-rule",
	"device-read-bps", "device-read-iops", "device-write-bps", "device-write-iops", "disable-content-trust", "entrypoint", "gpus", "group-add",
	"health-cmd", "health-interval", "health-retries", "health-start-interval", "health-start-period", "health-timeout", "init", "interactive, -i",
	"io-maxbandwidth", "io-maxiops", "ipc", "isolation", "kernel-memory", "log-driver", "log-opt", "memory, -m", "memory-reservation", "memory-swap",
	"memory-swappiness", "no-healthcheck", "oom-kill-disable", "oom-score-adj", "pid", "pids-limit", "platform", "pull", "quiet, -q", "read-only",
	"runtime", "security-opt", "shm-size", "stop-signal", "stop-timeout", "storage-opt", "tty, -t", "ulimit", "use-api-socket", "user, -u", "userns",
	"uts", "volume-driver", "volumes-from", "workdir, -w",
}
