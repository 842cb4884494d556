package option

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"
)

// needs says which builder can honour an option.
type needs int

const (
	either   needs = iota
	classic        // BuildKit would ignore it in silence
	buildkit       // the classic builder would ignore it in silence
	newer          // BuildKit honours it from API 1.42 on, the classic builder always
)

// entry is one flag of `docker build`. Exactly one of set, flag and refuse is
// there, or none where the flag changes nothing here.
type entry struct {
	needs  needs
	set    func(p *Parsed, value string) error
	flag   func(p *Parsed, on bool)
	refuse string // why it is not possible
	toggle bool   // takes true or false, though it changes nothing
}

// short are docker's one-letter flags.
func short() map[string]string {
	return map[string]string{"t": "tag", "f": "file", "q": "quiet", "m": "memory", "c": "cpu-shares"}
}

// table is every flag of `docker build`, of docker's own command and of buildx's.
func table() map[string]entry {
	return map[string]entry{
		"add-host": {set: func(p *Parsed, v string) error {
			host, ip, ok := cutAny(v, "=:")
			if !ok || host == "" || ip == "" {
				return fmt.Errorf("is of the form host:ip")
			}
			p.Build.ExtraHosts = append(p.Build.ExtraHosts, host+":"+strings.Trim(ip, "[]"))
			return nil
		}},
		"build-arg": {set: func(p *Parsed, v string) error {
			k, val, ok := strings.Cut(v, "=")
			if k == "" {
				return fmt.Errorf("is of the form NAME=value")
			}
			if p.Build.BuildArgs == nil {
				p.Build.BuildArgs = map[string]*string{}
			}
			p.Build.BuildArgs[k] = nil
			if ok {
				p.Build.BuildArgs[k] = &val
			}
			return nil
		}},
		"cache-from": {set: func(p *Parsed, v string) error {
			if strings.Contains(v, "=") {
				k, ref, err := csvRef(v)
				if err != nil || k != "registry" {
					return fmt.Errorf("takes an image (or type=registry,ref=IMAGE): the engine knows no other cache")
				}
				v = ref
			}
			p.Build.CacheFrom = append(p.Build.CacheFrom, v)
			return nil
		}},
		"cgroup-parent": {needs: newer, set: text(func(p *Parsed) *string { return &p.Build.CgroupParent })},
		"cpu-period":    {needs: classic, set: number(func(p *Parsed) *int64 { return &p.Build.CPUPeriod })},
		"cpu-quota":     {needs: classic, set: number(func(p *Parsed) *int64 { return &p.Build.CPUQuota })},
		"cpu-shares":    {needs: classic, set: number(func(p *Parsed) *int64 { return &p.Build.CPUShares })},
		"cpuset-cpus":   {needs: classic, set: text(func(p *Parsed) *string { return &p.Build.CPUSetCPUs })},
		"cpuset-mems":   {needs: classic, set: text(func(p *Parsed) *string { return &p.Build.CPUSetMems })},
		"file":          {set: text(func(p *Parsed) *string { return &p.Build.Dockerfile })},
		"force-rm":      {flag: func(p *Parsed, on bool) { p.Build.ForceRemove = on }},
		"isolation": {needs: classic, set: func(p *Parsed, v string) error {
			p.Build.Isolation = container.Isolation(v)
			return nil
		}},
		"label": {set: func(p *Parsed, v string) error {
			k, val, _ := strings.Cut(v, "=")
			if k == "" {
				return fmt.Errorf("is of the form name=value")
			}
			if p.Build.Labels == nil {
				p.Build.Labels = map[string]string{}
			}
			p.Build.Labels[k] = val
			return nil
		}},
		"memory": {needs: classic, set: size(func(p *Parsed) *int64 { return &p.Build.Memory })},
		"memory-swap": {needs: classic, set: func(p *Parsed, v string) error {
			if v == "-1" {
				p.Build.MemorySwap = -1
				return nil
			}
			return size(func(p *Parsed) *int64 { return &p.Build.MemorySwap })(p, v)
		}},
		"network":  {set: text(func(p *Parsed) *string { return &p.Build.NetworkMode })},
		"no-cache": {flag: func(p *Parsed, on bool) { p.Build.NoCache = on }},
		"platform": {set: text(func(p *Parsed) *string { return &p.Build.Platform })},
		"pull":     {flag: func(p *Parsed, on bool) { p.Build.PullParent = on }},
		"rm":       {flag: func(p *Parsed, on bool) { p.Build.Remove = on }},
		"secret": {needs: buildkit, set: func(p *Parsed, v string) error {
			id, err := idOf(v)
			p.Secrets = append(p.Secrets, id)
			return err
		}},
		"security-opt": {needs: classic, set: func(p *Parsed, v string) error {
			p.Build.SecurityOpt = append(p.Build.SecurityOpt, v)
			return nil
		}},
		"shm-size": {needs: newer, set: size(func(p *Parsed) *int64 { return &p.Build.ShmSize })},
		"squash":   {needs: classic, flag: func(p *Parsed, on bool) { p.Build.Squash = on }},
		"ssh": {needs: buildkit, set: func(p *Parsed, v string) error {
			id, _, _ := strings.Cut(v, "=")
			if id == "" {
				return fmt.Errorf("is of the form default or name=SOCKET")
			}
			p.Agents = append(p.Agents, id)
			return nil
		}},
		"tag": {set: func(p *Parsed, v string) error {
			p.Build.Tags = append(p.Build.Tags, v)
			return nil
		}},
		"target": {set: text(func(p *Parsed) *string { return &p.Build.Target })},
		"ulimit": {needs: newer, set: func(p *Parsed, v string) error {
			u, err := units.ParseUlimit(v)
			p.Build.Ulimits = append(p.Build.Ulimits, u)
			return err
		}},

		// Of no effect here: what they are for is so, or is ctl's to do.
		"compress": {toggle: true}, "disable-content-trust": {toggle: true}, "load": {toggle: true}, "stream": {toggle: true},
		"quiet": {toggle: true}, "progress": {}, "iidfile": {},

		"output":          {refuse: "the result is an image of the engine"},
		"push":            {refuse: "the image stays on the engine; use docker push"},
		"builder":         {refuse: "the engine itself builds"},
		"allow":           {refuse: "the engine grants no entitlements"},
		"annotation":      {refuse: "the engine's own builder has none"},
		"attest":          {refuse: "the engine's own builder has none"},
		"build-context":   {refuse: "the engine's own builder takes one context"},
		"cache-to":        {refuse: "the engine keeps its own cache; build-arg=BUILDKIT_INLINE_CACHE=1 puts it into the image"},
		"call":            {refuse: "only builds are run here"},
		"check":           {refuse: "only builds are run here"},
		"metadata-file":   {refuse: "the facts of the build tell it: ctl events"},
		"no-cache-filter": {refuse: "the engine's own builder takes no-cache as a whole"},
		"provenance":      {refuse: "the engine's own builder has none"},
		"sbom":            {refuse: "the engine's own builder has none"},
	}
}

func text(field func(*Parsed) *string) func(*Parsed, string) error {
	return func(p *Parsed, v string) error {
		if v == "" {
			return fmt.Errorf("needs a value")
		}
		*field(p) = v
		return nil
	}
}

func number(field func(*Parsed) *int64) func(*Parsed, string) error {
	return func(p *Parsed, v string) (err error) {
		if *field(p), err = strconv.ParseInt(v, 10, 64); err != nil {
			return fmt.Errorf("takes a number, not %q", v)
		}
		return nil
	}
}

func size(field func(*Parsed) *int64) func(*Parsed, string) error {
	return func(p *Parsed, v string) (err error) {
		if *field(p), err = units.RAMInBytes(v); err != nil {
			return fmt.Errorf("takes a size like 512m, not %q", v)
		}
		return nil
	}
}

// cutAny cuts s at the first of the separators.
func cutAny(s, seps string) (before, after string, found bool) {
	if i := strings.IndexAny(s, seps); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// idOf is the id of id=…,src=….
func idOf(v string) (string, error) {
	for f := range strings.SplitSeq(v, ",") {
		if k, id, _ := strings.Cut(f, "="); k == "id" && id != "" {
			return id, nil
		}
	}
	return "", fmt.Errorf("is of the form id=NAME,src=FILE or id=NAME,env=VARIABLE")
}

// csvRef takes type=…,ref=… apart.
func csvRef(v string) (kind, ref string, err error) {
	for f := range strings.SplitSeq(v, ",") {
		switch k, val, _ := strings.Cut(f, "="); k {
		case "type":
			kind = val
		case "ref":
			ref = val
		default:
			return "", "", fmt.Errorf("%q is not known", k)
		}
	}
	return kind, ref, nil
}
