// Package compose reads compose files in which services are handlers: those with
// the extension x-berth. It turns each into the command line of ctl that does
// the same, and runs nothing itself.
//
//	services:
//	  web:
//	    image: web:dev
//	    ports: ["8080:80"]
//	    x-berth:
//	      replace: frontend        # or intercept, ingest or wiretap: the workload
//	      container: app           # and any flag of that command
//	      port: ["80:http"]
//
// A service without x-berth is docker compose's, and so are the project's
// networks: a handler joins those that are there. What a service asks for and a
// handler cannot be given is a fault that names it.
package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth.dev/bus/fault"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// Extension is the key of what makes a service a handler.
const Extension = "x-berth"

// Options say which project.
type Options struct {
	Files    []string // none: the one that docker compose would take
	Name     string   // of the project; empty: as docker compose would name it
	Profiles []string
	Services []string // those of the handlers that are meant; none: all
}

// Handler is a service that is one.
type Handler struct {
	Service string   `json:"service"`
	Args    []string `json:"args"`            // of ctl: replace frontend --docker-run -- …
	Notes   []string `json:"notes,omitempty"` // what of the service does not count here, and why
}

// Networks reports whether the engine has a network.
type Networks func(ctx context.Context, name string) (bool, error)

// Load reads the project and returns its handlers, by name.
func Load(ctx context.Context, o Options, has Networks) ([]Handler, error) {
	p, err := load(ctx, o)
	if err != nil {
		return nil, err
	}
	var all []Handler
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		if s.Extensions[Extension] == nil {
			if slices.Contains(o.Services, name) {
				return nil, fault.New(fault.InvalidArgument, "docker compose up "+name, "the service %s has no %s: it is docker compose's", name, Extension)
			}
			continue
		}
		if len(o.Services) > 0 && !slices.Contains(o.Services, name) {
			continue
		}
		h, err := handler(ctx, p, s, has)
		if err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	for _, name := range o.Services {
		if _, ok := p.Services[name]; !ok {
			return nil, fault.New(fault.InvalidArgument, "ctl compose config", "the project %s has no service %s", p.Name, name)
		}
	}
	if len(all) == 0 {
		return nil, fault.New(fault.InvalidArgument, "ctl compose --help", "no service of the project %s has %s", p.Name, Extension)
	}
	return all, nil
}

func load(ctx context.Context, o Options) (*types.Project, error) {
	opts, err := cli.NewProjectOptions(o.Files,
		cli.WithOsEnv, cli.WithConfigFileEnv, cli.WithDefaultConfigPath, cli.WithEnvFiles(), cli.WithDotEnv,
		cli.WithName(o.Name), cli.WithDefaultProfiles(o.Profiles...))
	if err == nil {
		var p *types.Project
		if p, err = opts.LoadProject(ctx); err == nil {
			return p.WithServicesEnvironmentResolved(true)
		}
	}
	return nil, fault.New(fault.InvalidArgument, "ctl compose --file FILE", "read the compose file: %v", err)
}

// handler is the command line of a service.
func handler(ctx context.Context, p *types.Project, s types.ServiceConfig, has Networks) (Handler, error) {
	h := Handler{Service: s.Name}
	bad := func(format string, args ...any) (Handler, error) {
		return h, fault.New(fault.InvalidArgument, "ctl compose --help", "service %s: %s", s.Name, fmt.Sprintf(format, args...))
	}
	engage, err := engagement(s.Extensions[Extension])
	if err != nil {
		return bad("%v", err)
	}
	if left := unknown(s); len(left) > 0 {
		return bad("a handler cannot be given %s", strings.Join(left, ", "))
	}
	run, image, err := runArgs(p, s)
	if err != nil {
		return bad("%v", err)
	}
	nets, err := networks(ctx, p, s, has)
	if err != nil {
		return h, err
	}
	run = append(run, nets...)
	h.Args = append(engage, image...)
	h.Args = append(append(h.Args, "--"), run...)
	if s.Build != nil {
		h.Args = append(h.Args, "IMAGE")
	} else {
		h.Args = append(h.Args, s.Image)
	}
	if len(s.Entrypoint) > 1 {
		h.Args = append(h.Args, s.Entrypoint[1:]...)
	}
	h.Args = append(h.Args, s.Command...)
	h.Notes = notes(s)
	return h, nil
}

// engagement is what x-berth says: the command, the workload, and its flags.
func engagement(x any) ([]string, error) {
	m, ok := x.(map[string]any)
	if !ok {
		return nil, errors.New(Extension + " is a map, as in {replace: frontend}")
	}
	var args []string
	for _, kind := range []string{"replace", "intercept", "ingest", "wiretap"} {
		w, ok := m[kind]
		if !ok {
			continue
		}
		name, ok := w.(string)
		if !ok || name == "" || args != nil {
			return nil, errors.New(Extension + " has one of replace, intercept, ingest and wiretap, with the name of a workload")
		}
		args = []string{kind, name}
	}
	if args == nil {
		return nil, errors.New(Extension + " says neither replace nor intercept, ingest or wiretap")
	}
	for _, flag := range slices.Sorted(maps.Keys(m)) {
		if flag == args[0] {
			continue
		}
		switch flag {
		case "docker-run", "docker-build", "docker-build-opt", "docker-debug", "watch", "use", "workspace", "output", "help":
			return nil, fmt.Errorf("%s: %s is not for here: the service says it, or the command", Extension, flag)
		}
		values, ok := m[flag].([]any)
		if !ok {
			values = []any{m[flag]}
		}
		for _, v := range values {
			switch v := v.(type) {
			case string, bool, int, int64, uint64, float64:
				args = append(args, fmt.Sprintf("--%s=%v", flag, v))
			default:
				return nil, fmt.Errorf("%s: %s is neither a value nor a list of values", Extension, flag)
			}
		}
	}
	return args, nil
}

// networks are the flags by which a service's networks are joined.
func networks(ctx context.Context, p *types.Project, s types.ServiceConfig, has Networks) ([]string, error) {
	if s.NetworkMode != "" {
		return []string{"--network=" + s.NetworkMode}, nil // refused with the reason, but for bridge
	}
	var args []string
	for _, key := range s.NetworksByPriority() {
		n, c := p.Networks[key], s.Networks[key]
		there, err := has(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		if !there {
			others := neighbours(p, key)
			if key == "default" && len(others) == 0 {
				continue // handlers alone: they share one network already
			}
			hint := "docker network create " + n.Name
			if len(others) > 0 {
				hint = "docker compose up -d " + strings.Join(others, " ")
			}
			return nil, fault.New(fault.FailedPrecondition, hint, "service %s: the network %s is not there: docker compose makes it for the project's other services", s.Name, n.Name)
		}
		arg := []string{"name=" + n.Name, "alias=" + s.Name}
		if c != nil {
			for _, a := range c.Aliases {
				arg = append(arg, "alias="+a)
			}
			for k, v := range map[string]string{"ip": c.Ipv4Address, "ip6": c.Ipv6Address, "mac-address": c.MacAddress} {
				if v != "" {
					arg = append(arg, k+"="+v)
				}
			}
			slices.Sort(arg[2:])
		}
		args = append(args, "--network="+strings.Join(arg, ","))
	}
	return args, nil
}

// neighbours are the services on a network that are docker compose's.
func neighbours(p *types.Project, network string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		if _, on := s.Networks[network]; on && s.Extensions[Extension] == nil {
			names = append(names, name)
		}
	}
	return names
}

// notes are what of a service does not count for a handler.
func notes(s types.ServiceConfig) []string {
	var n []string
	if s.Restart != "" && s.Restart != types.RestartPolicyNo {
		n = append(n, "restart: "+s.Restart+" does not count: the handler's end is that of its engagement")
	}
	if len(s.DependsOn) > 0 {
		n = append(n, "depends_on does not count: docker compose starts what it names")
	}
	return n
}
