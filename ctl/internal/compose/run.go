package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// known are the keys of a service that runArgs and its neighbours look at.
var known = []string{
	"image", "build", "command", "entrypoint", "environment", "env_file", "volumes", "tmpfs", "ports", "expose", "networks", "network_mode",
	"user", "working_dir", "tty", "stdin_open", "container_name", "labels", "cap_add", "cap_drop", "privileged", "devices", "read_only", "init",
	"shm_size", "mem_limit", "mem_reservation", "cpus", "pids_limit", "extra_hosts", "dns", "dns_search", "dns_opt", "hostname", "domainname", "mac_address",
	"stop_signal", "stop_grace_period", "platform", "pull_policy", "security_opt", "sysctls", "group_add", "pid", "ipc", "runtime",
	"restart", "depends_on", "profiles", "logging", "healthcheck",
}

// unknown are the keys that a service has set beside these.
func unknown(s types.ServiceConfig) []string {
	raw, err := json.Marshal(s)
	var m map[string]any
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != nil && !slices.Contains(known, k) {
			left = append(left, k)
		}
	}
	return left
}

// runArgs are the flags of `docker run` for a service, and those of ctl by which
// its image comes about.
func runArgs(p *types.Project, s types.ServiceConfig) (run, image []string, err error) {
	add := func(flag string, values ...string) {
		for _, v := range values {
			run = append(run, "--"+flag+"="+v)
		}
	}
	text := func(flag, v string) {
		if v != "" {
			add(flag, v)
		}
	}
	on := func(flag string, is bool) {
		if is {
			run = append(run, "--"+flag)
		}
	}
	on("interactive", s.StdinOpen)
	on("tty", s.Tty)
	text("name", s.ContainerName)
	for _, k := range slices.Sorted(maps.Keys(s.Environment)) {
		if v := s.Environment[k]; v != nil {
			add("env", k+"="+*v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		add("label", k+"="+s.Labels[k])
	}
	if len(s.Entrypoint) > 0 {
		add("entrypoint", s.Entrypoint[0])
	} else if s.Entrypoint != nil {
		add("entrypoint", "")
	}
	for _, v := range s.Volumes {
		m, err := mount(p, v)
		if err != nil {
			return nil, nil, err
		}
		run = append(run, m...)
	}
	add("tmpfs", s.Tmpfs...)
	for _, port := range s.Ports {
		add("publish", publish(port))
	}
	add("expose", s.Expose...)
	text("user", s.User)
	text("workdir", s.WorkingDir)
	add("cap-add", s.CapAdd...)
	add("cap-drop", s.CapDrop...)
	on("privileged", s.Privileged)
	for _, d := range s.Devices {
		add("device", d.Source+":"+d.Target+":"+d.Permissions)
	}
	on("read-only", s.ReadOnly)
	if s.Init != nil {
		add("init", strconv.FormatBool(*s.Init))
	}
	bytes := func(flag string, n types.UnitBytes) {
		if n != 0 {
			add(flag, strconv.FormatInt(int64(n), 10))
		}
	}
	bytes("shm-size", s.ShmSize)
	bytes("memory", s.MemLimit)
	bytes("memory-reservation", s.MemReservation)
	if s.CPUS != 0 {
		add("cpus", strconv.FormatFloat(float64(s.CPUS), 'f', -1, 32))
	}
	if s.PidsLimit != 0 {
		add("pids-limit", strconv.FormatInt(s.PidsLimit, 10))
	}
	add("add-host", s.ExtraHosts.AsList(":")...)
	add("dns", s.DNS...)
	add("dns-search", s.DNSSearch...)
	add("dns-option", s.DNSOpts...)
	text("hostname", s.Hostname)
	text("domainname", s.DomainName)
	text("mac-address", s.MacAddress)
	text("stop-signal", s.StopSignal)
	if s.StopGracePeriod != nil {
		add("stop-timeout", strconv.Itoa(int(time.Duration(*s.StopGracePeriod)/time.Second)))
	}
	text("platform", s.Platform)
	add("security-opt", s.SecurityOpt...)
	for _, k := range slices.Sorted(maps.Keys(s.Sysctls)) {
		add("sysctl", k+"="+s.Sysctls[k])
	}
	add("group-add", s.GroupAdd...)
	text("pid", s.Pid)
	text("ipc", s.Ipc)
	text("runtime", s.Runtime)
	if s.Logging != nil {
		text("log-driver", s.Logging.Driver)
		for _, k := range slices.Sorted(maps.Keys(s.Logging.Options)) {
			add("log-opt", k+"="+s.Logging.Options[k])
		}
	}
	health, err := healthArgs(s.HealthCheck)
	if err != nil {
		return nil, nil, err
	}
	run = append(run, health...)
	switch s.PullPolicy {
	case "", types.PullPolicyMissing, types.PullPolicyIfNotPresent, types.PullPolicyBuild:
	case types.PullPolicyAlways, types.PullPolicyNever:
		add("pull", s.PullPolicy)
	default:
		return nil, nil, fmt.Errorf("pull_policy %s is not possible", s.PullPolicy)
	}
	image, err = imageArgs(s)
	return run, image, err
}

// healthArgs are the flags of a service's health check.
func healthArgs(h *types.HealthCheckConfig) ([]string, error) {
	if h == nil {
		return nil, nil
	}
	if h.Disable || len(h.Test) > 0 && h.Test[0] == "NONE" {
		return []string{"--no-healthcheck"}, nil
	}
	var args []string
	switch {
	case len(h.Test) == 0: // the image's
	case len(h.Test) == 2 && h.Test[0] == "CMD-SHELL":
		args = append(args, "--health-cmd="+h.Test[1])
	default:
		return nil, errors.New("the healthcheck's test has to be a line for the shell: docker run takes no other")
	}
	for _, x := range []struct {
		flag string
		d    *types.Duration
	}{{"interval", h.Interval}, {"timeout", h.Timeout}, {"start-period", h.StartPeriod}, {"start-interval", h.StartInterval}} {
		if x.d != nil {
			args = append(args, "--health-"+x.flag+"="+time.Duration(*x.d).String())
		}
	}
	if h.Retries != nil {
		args = append(args, "--health-retries="+strconv.FormatUint(*h.Retries, 10))
	}
	return args, nil
}

// imageArgs are ctl's flags for a service's image.
func imageArgs(s types.ServiceConfig) ([]string, error) {
	b := s.Build
	if b == nil {
		if s.Image == "" {
			return nil, errors.New("it has neither image nor build")
		}
		return []string{"--docker-run"}, nil
	}
	if len(b.AdditionalContexts)+len(b.SSH)+len(b.Secrets)+len(b.Platforms) > 0 || b.DockerfileInline != "" {
		return nil, errors.New("build has what ctl build cannot be given here: additional_contexts, dockerfile_inline, platforms, secrets or ssh")
	}
	args := []string{"--docker-build=" + b.Context}
	option := func(key, value string) {
		if value != "" {
			args = append(args, "--docker-build-opt="+key+"="+value)
		}
	}
	option("file", b.Dockerfile)
	option("target", b.Target)
	option("network", b.Network)
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		v := k
		if b.Args[k] != nil {
			v += "=" + *b.Args[k]
		}
		option("build-arg", v)
	}
	option("tag", s.Image)
	for _, t := range b.Tags {
		option("tag", t)
	}
	return args, nil
}

// mount is a volume of a service as `docker run` has it.
func mount(p *types.Project, v types.ServiceVolumeConfig) ([]string, error) {
	if v.Volume != nil && v.Volume.NoCopy || v.Volume != nil && v.Volume.Subpath != "" || v.Bind != nil && v.Bind.Propagation != "" {
		return nil, fmt.Errorf("the volume at %s has nocopy, subpath or propagation, which is not possible", v.Target)
	}
	end := ""
	if v.ReadOnly {
		end = ":ro"
	}
	switch v.Type {
	case types.VolumeTypeBind:
		return []string{"--volume=" + v.Source + ":" + v.Target + end}, nil
	case types.VolumeTypeVolume:
		if v.Source == "" {
			return []string{"--volume=" + v.Target}, nil
		}
		return []string{"--volume=" + p.Volumes[v.Source].Name + ":" + v.Target + end}, nil
	case types.VolumeTypeTmpfs:
		return []string{"--tmpfs=" + v.Target}, nil
	}
	return nil, fmt.Errorf("a volume of type %s is not possible", v.Type)
}

// publish is a port of a service as `docker run` has it.
func publish(c types.ServicePortConfig) string {
	s := strconv.Itoa(int(c.Target))
	if c.Published != "" || c.HostIP != "" {
		s = c.Published + ":" + s
	}
	if c.HostIP != "" {
		host := c.HostIP
		if len(host) > 0 && host[0] != '[' && slices.Contains([]byte(host), ':') {
			host = "[" + host + "]"
		}
		s = host + ":" + s
	}
	return s + "/" + c.Protocol
}
