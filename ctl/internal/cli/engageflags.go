package cli

import (
	"flag"
	"net/netip"
	"path"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/hostmount"
	"berth.dev/ctl/internal/localrun"
	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

// engageFlags are those of replace, intercept, ingest and wiretap. Which of them a
// command has follows from its kind; see register.
type engageFlags struct {
	kind      lease.Kind
	dockerRun bool
	build     buildFlags
	container string
	namespace string
	ports     usage.List
	address   string
	service   string
	http      httpFlags
	toPod     usage.List
	mount     string
	dockerDir string
	mountTime time.Duration
	env       envFlags
	message   string
	wait      string
	waitLimit time.Duration
	secrets   string
}

func (f *engageFlags) register(fs *flag.FlagSet) {
	fs.BoolVar(&f.dockerRun, "docker-run", false, "run the handler with docker run, with the arguments behind --")
	f.build.register(fs)
	fs.StringVar(&f.container, "container", "", "`NAME` of the container to "+string(f.kind)+" (default: the only one)")
	fs.StringVar(&f.namespace, "n", "", "`NAMESPACE` of the workload (default: the connected one)")
	fs.StringVar(&f.namespace, "namespace", "", "the same as -n")
	f.env.register(fs)
	fs.StringVar(&f.secrets, "secrets", "", "what of the container's Secrets comes to the handler, by `POLICY`: allow, all of them, and refused where you may not read one (the default); mask, those that you may read; deny, none")
	fs.StringVar(&f.message, "wait-message", "", "`TEXT` to print when the engagement is active")
	if f.kind != lease.Ingest {
		fs.StringVar(&f.wait, "wait", "", "what of the handler is waited for `UNTIL` the traffic goes to it: none, listening (its ports; the default) or healthy (its image's HEALTHCHECK, or its ports where there is none)")
		fs.DurationVar(&f.waitLimit, "wait-limit", 0, "fail if that takes longer than `DURATION` (default: as long as the handler runs; the workload's own pods answer meanwhile)")
	}
	switch f.kind {
	case lease.Replace:
		fs.Var(&f.ports, "port", "`PORT[:CONTAINER]`: the handler's port, and the container's port, number or name, whose traffic comes to it, with /UDP if it is; repeatable (default: every port the container declares); for a container on a machine that is connected without --docker: LOCAL[:CONTAINER[:ID]]")
	case lease.Intercept, lease.Wiretap:
		fs.Var(&f.ports, "port", "`PORT[:ID]`: the handler's port, and the service's port, number or name, whose traffic comes to it, with /UDP if it is; repeatable; for a container on a machine that is connected without --docker: LOCAL[:CONTAINER[:ID]]")
		fs.StringVar(&f.service, "service", "", "`NAME` of the service whose port it is, where several select the workload")
		f.http.register(fs)
	}
	fs.Var(&f.toPod, "to-pod", "`PORT[/UDP]` of the pod that the handler reaches at 127.0.0.1; repeatable")
	fs.StringVar(&f.mount, "mount", "", "the remote volumes: true, each at its own path; false; or the `PATH[:ro]` below which they are in the handler. For a command of this machine they are mounted on it, below PATH, or with true below a new folder that $BERTH_ROOT names (default: true where that can be done)")
	fs.StringVar(&f.dockerDir, "docker-mount", "", "`DIR` in the handler's container below which the remote volumes are")
	fs.DurationVar(&f.mountTime, "mount-timeout", 0, "for how long a program's calls on a remote volume block while its pod is away, by `DURATION` (100ms to 1h); then they fail with EIO (default 30s)")
	if f.kind != lease.Ingest {
		fs.StringVar(&f.address, "address", "", "`IP` at which the handler listens (default: 127.0.0.1)")
	}
}

// inContainer reports whether a container is the handler.
func (f *engageFlags) inContainer() bool { return f.dockerRun || f.build.given() }

// check is what can be seen to be wrong without asking anybody.
// asJSON: stdout is for the facts.
func (f *engageFlags) check(l usage.Line, asJSON bool) error {
	name := "ctl " + string(f.kind)
	help := name + " --help"
	switch {
	case len(l.Words) == 0:
		return fault.New(fault.InvalidArgument, help, "no workload given")
	case len(l.Words) > 1:
		return fault.New(fault.InvalidArgument, name+" "+l.Words[0]+" --docker-run -- "+strings.Join(l.Words[1:], " "), "one workload at a time; what is for the handler stands behind --")
	}
	if f.address != "" {
		if _, err := netip.ParseAddr(f.address); err != nil {
			return fault.New(fault.InvalidArgument, "--address 127.0.0.1", "--address %s: not an IP address", f.address)
		}
	}
	if err := f.http.check(name + " " + l.Words[0]); err != nil {
		return err
	}
	if err := f.checkMounts(!f.inContainer() && len(l.After) > 0); err != nil {
		return err
	}
	switch f.wait {
	case "", command.WaitNone, command.WaitListening, command.WaitHealthy:
	default:
		return fault.New(fault.InvalidArgument, "--wait listening", "--wait is none, listening or healthy, not %q", f.wait)
	}
	switch f.secrets {
	case "", command.SecretsAllow, command.SecretsMask, command.SecretsDeny:
	default:
		return fault.New(fault.InvalidArgument, "--secrets mask", "--secrets is allow, mask or deny, not %q", f.secrets)
	}
	if f.waitLimit < 0 || f.waitLimit > 0 && f.wait == command.WaitNone {
		return fault.New(fault.InvalidArgument, "--wait listening --wait-limit 60s", "--wait-limit %v: nothing to wait for", f.waitLimit)
	}
	if err := f.env.check(asJSON); err != nil {
		return err
	}
	run := name + " " + l.Words[0] + " --docker-run -- IMAGE"
	switch {
	case f.build.given() && (f.dockerRun || f.build.context != "" && f.build.debug != ""):
		return fault.New(fault.InvalidArgument, help, "at most one of --docker-run, --docker-build and --docker-debug can be given")
	case f.build.watch && f.wait == command.WaitNone:
		return fault.New(fault.InvalidArgument, "--wait listening", "--watch and --wait none exclude each other: connections would be refused until the next handler listens")
	case f.build.given():
		return f.build.check(l.After)
	case f.build.watch:
		return fault.New(fault.InvalidArgument, help, "--watch is of use with --docker-build or --docker-debug only")
	case len(f.build.options) > 0:
		return fault.New(fault.InvalidArgument, help, "--docker-build-opt is of use with --docker-build or --docker-debug only")
	case f.dockerRun && len(l.After) == 0:
		return fault.New(fault.InvalidArgument, run, "no image given behind --")
	case f.dockerRun:
		return nil
	case l.Dashes && len(l.After) == 0:
		return fault.New(fault.InvalidArgument, name+" "+l.Words[0]+" -- COMMAND", "no command behind --")
	case l.Dashes:
		if f.wait == command.WaitHealthy {
			return fault.New(fault.InvalidArgument, "--wait listening", "--wait healthy needs a handler in a container")
		}
		return localrun.Check(l.After)
	case f.kind == lease.Replace:
		// Nobody would answer in the place of the container that is taken out.
		return fault.New(fault.InvalidArgument, run, "no handler given: --docker-run is needed, or a command behind --")
	}
	return nil
}

// checkMounts looks at --mount, --mount-timeout and --docker-mount; local: a
// command of this machine is the handler.
func (f *engageFlags) checkMounts(local bool) error {
	dir := strings.TrimSuffix(f.mount, ":ro")
	if f.mount != "" && dir != "false" && !f.inContainer() && !local {
		return fault.New(fault.InvalidArgument, "-- COMMAND", "--mount %s is of use with a handler only: a container (--docker-run) or a command", f.mount)
	}
	switch {
	case dir == "true" || dir == "false" && f.mount == dir || f.mount == "":
	case !path.IsAbs(dir):
		return fault.New(fault.InvalidArgument, "--mount /remote:ro", "--mount is true, false or an absolute path, not %q", f.mount)
	case local:
		if err := hostmount.CheckDir(path.Clean(dir)); err != nil {
			return err
		}
	}
	switch {
	case f.mountTime == 0:
	case f.mountTime < command.MountTimeoutMin || f.mountTime > command.MountTimeoutMax:
		return fault.New(fault.InvalidArgument, "--mount-timeout 30s", "--mount-timeout %v: it is %v to %v", f.mountTime, command.MountTimeoutMin, command.MountTimeoutMax)
	case f.mount == "false":
		return fault.New(fault.InvalidArgument, "", "--mount-timeout and --mount false exclude each other")
	}
	switch {
	case f.dockerDir == "":
	case !path.IsAbs(f.dockerDir):
		return fault.New(fault.InvalidArgument, "--docker-mount /remote", "--docker-mount %s: not an absolute path", f.dockerDir)
	case f.mount == "false":
		return fault.New(fault.InvalidArgument, "--docker-mount "+f.dockerDir, "--docker-mount and --mount false exclude each other")
	case !f.inContainer():
		return fault.New(fault.InvalidArgument, "--docker-run", "--docker-mount is of use with a handler in a container only")
	}
	return nil
}

// request is the engagement that the flags ask for.
func (f *engageFlags) request(connection, workload string) command.OpenEngagement {
	return command.OpenEngagement{
		Connection: connection, Kind: string(f.kind), Namespace: f.namespace, Workload: workload,
		Container: f.container, Ports: f.ports, Address: f.address, Service: f.service, HTTP: f.http.filter(), ToPod: f.toPod,
		Mount: f.mount, DockerMount: f.dockerDir, MountTimeoutMillis: f.mountTime.Milliseconds(),
		Secrets: f.secrets, Wait: f.wait, WaitMillis: f.waitLimit.Milliseconds(),
	}
}
