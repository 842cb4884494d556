// Package option is what may be asked of a build: key=value with the keys of
// `docker build`, repeatable where docker's flag is, and a key alone for true.
//
// table.go is the whole of it. An option that the chosen builder would ignore
// in silence decides for the other builder, or is an error; an unknown one is
// an error that names the nearest.
package option

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/versions"
)

// Builders of the engine.
const (
	BuildKit = "buildkit"
	Classic  = "classic"
)

// Parsed is what the options say.
type Parsed struct {
	Build   build.ImageBuildOptions
	Secrets []string // ids; the values are at the caller's
	Agents  []string // ids of ssh agents at the caller's

	classic  []string // keys that only the classic builder honours
	buildkit []string // keys that only BuildKit does
}

// Parse reads the options for an engine of that API version.
func Parse(options []string, api string) (*Parsed, error) {
	p := &Parsed{Build: build.ImageBuildOptions{Remove: true, ForceRemove: true}}
	known := table()
	for _, o := range options {
		key, value, given := strings.Cut(o, "=")
		key = strings.TrimPrefix(strings.TrimPrefix(key, "-"), "-")
		if long, ok := short()[key]; ok {
			key = long
		}
		e, ok := known[key]
		switch {
		case !ok:
			return nil, unknown(key, known)
		case e.refuse != "":
			return nil, fault.New(fault.InvalidArgument, "", "the build option %q is not possible: %s", key, e.refuse)
		case e.flag != nil || e.toggle:
			on := true
			if given {
				var err error
				if on, err = strconv.ParseBool(value); err != nil {
					return nil, fault.New(fault.InvalidArgument, "", "the build option %q takes true or false, not %q", key, value)
				}
			}
			if e.flag != nil {
				e.flag(p, on)
			}
			if !on {
				continue
			}
		case !given:
			return nil, fault.New(fault.InvalidArgument, "", "the build option %q needs a value: %s=…", key, key)
		case e.set != nil:
			if err := e.set(p, value); err != nil {
				return nil, fault.New(fault.InvalidArgument, "", "the build option %q %v", key, err)
			}
		}
		switch {
		case e.needs == buildkit:
			p.buildkit = append(p.buildkit, key)
		case e.needs == classic, e.needs == newer && versions.LessThan(api, "1.42"):
			p.classic = append(p.classic, key)
		}
	}
	if len(p.classic) > 0 && len(p.buildkit) > 0 {
		return nil, fault.New(fault.InvalidArgument, "", "the build options %q and %q exclude each other: one is of the classic builder only, the other of BuildKit only", p.classic[0], p.buildkit[0])
	}
	return p, nil
}

// Builder is the builder that the options leave, "" for either; want is what
// was asked for.
func (p *Parsed) Builder(want string) (string, error) {
	switch want {
	case "", BuildKit, Classic:
	default:
		return "", fault.New(fault.InvalidArgument, "", "the builder is %s or %s, not %q", BuildKit, Classic, want)
	}
	switch {
	case len(p.classic) > 0 && want == BuildKit:
		return "", fault.New(fault.InvalidArgument, "DOCKER_BUILDKIT=0", "the build option %q is one of the classic builder: this engine's BuildKit would ignore it", p.classic[0])
	case len(p.buildkit) > 0 && want == Classic:
		return "", fault.New(fault.InvalidArgument, "DOCKER_BUILDKIT=1", "the build option %q is one of BuildKit: the classic builder would ignore it", p.buildkit[0])
	case len(p.classic) > 0:
		return Classic, nil
	case len(p.buildkit) > 0:
		return BuildKit, nil
	}
	return want, nil
}

func unknown(key string, known map[string]entry) error {
	hint := "docker build --help"
	msg := ""
	if n := nearest(key, slices.Sorted(maps.Keys(known))); n != "" {
		msg = "; did you mean " + strconv.Quote(n) + "?"
	}
	return fault.New(fault.InvalidArgument, hint, "docker build has no option %q%s", key, msg)
}

// NeedsBuildKit reports whether an option leaves only BuildKit.
func (p *Parsed) NeedsBuildKit() bool { return len(p.buildkit) > 0 }
