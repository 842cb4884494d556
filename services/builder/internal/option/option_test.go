package option

import (
	"strings"
	"testing"

	"berth.dev/bus/fault"
)

func TestParse(t *testing.T) {
	p, err := Parse([]string{
		"tag=a:1", "t=b", "build-arg=A=x=y", "build-arg=B", "target=dev", "label=k=v", "no-cache", "pull=false",
		"platform=linux/amd64", "network=host", "add-host=db:10.0.0.1", "add-host=six=[::1]", "cache-from=type=registry,ref=img",
		"file=sub/Dockerfile", "quiet", "load", "rm=false",
	}, "1.41")
	if err != nil {
		t.Fatal(err)
	}
	b := p.Build
	switch {
	case strings.Join(b.Tags, " ") != "a:1 b", *b.BuildArgs["A"] != "x=y", b.BuildArgs["B"] != nil, len(b.BuildArgs) != 2,
		b.Target != "dev", b.Labels["k"] != "v", !b.NoCache, b.PullParent, b.Platform != "linux/amd64", b.NetworkMode != "host",
		strings.Join(b.ExtraHosts, " ") != "db:10.0.0.1 six:::1", strings.Join(b.CacheFrom, " ") != "img", b.Dockerfile != "sub/Dockerfile",
		b.Remove, !b.ForceRemove:
		t.Errorf("%+v", b)
	}
	if got, err := p.Builder(""); got != "" || err != nil {
		t.Errorf("builder %q, %v", got, err)
	}
	p, err = Parse([]string{"memory=64m", "memory-swap=-1", "cpu-quota=5", "ulimit=nofile=10:20", "shm-size=1k", "squash"}, "1.41")
	if err != nil || p.Build.Memory != 64<<20 || p.Build.MemorySwap != -1 || p.Build.CPUQuota != 5 || p.Build.Ulimits[0].Hard != 20 || p.Build.ShmSize != 1024 || !p.Build.Squash {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestBuilder(t *testing.T) {
	for _, c := range []struct {
		options          []string
		api, want, build string
		wrong            bool
	}{
		{nil, "1.41", "", "", false},
		{nil, "1.41", Classic, Classic, false},
		{[]string{"shm-size=1m"}, "1.41", "", Classic, false},
		{[]string{"shm-size=1m"}, "1.44", "", "", false},
		{[]string{"squash=false"}, "1.41", BuildKit, BuildKit, false},
		{[]string{"memory=1m"}, "1.44", "", Classic, false},
		{[]string{"memory=1m"}, "1.44", BuildKit, "", true},
		{[]string{"secret=id=x,src=y"}, "1.41", "", BuildKit, false},
		{[]string{"ssh=default"}, "1.41", Classic, "", true},
		{nil, "1.41", "kaniko", "", true},
	} {
		p, err := Parse(c.options, c.api)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Builder(c.want)
		if got != c.build || (err != nil) != c.wrong || c.wrong && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%q asking for %q: %q, %v", c.options, c.want, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for option, want := range map[string]string{
		"tagg=x":              `did you mean "tag"`,
		"no-cahce":            `did you mean "no-cache"`,
		"buildarg=A=b":        `did you mean "build-arg"`,
		"zzzzzzzz=1":          `no option "zzzzzzzz"`,
		"tag":                 "needs a value",
		"pull=maybe":          "true or false",
		"memory=lots":         "a size",
		"cpu-quota=x":         "a number",
		"add-host=x":          "host:ip",
		"secret=src=f":        "id=NAME",
		"output=type=tar":     "an image of the engine",
		"build-arg==x":        "NAME=value",
		"cache-from=type=gha": "no other cache",
		"ulimit=x":            "ulimit",
		"":                    "no option",
	} {
		_, err := Parse([]string{option}, "1.41")
		if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", option, err, want)
		}
	}
	if _, err := Parse([]string{"memory=1m", "ssh=default"}, "1.41"); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("options that exclude each other: %v", err)
	}
}

// Every flag does exactly one thing.
func TestTable(t *testing.T) {
	for k, e := range table() {
		n := 0
		for _, has := range []bool{e.set != nil, e.flag != nil, e.refuse != "", e.toggle} {
			if has {
				n++
			}
		}
		if n > 1 || n == 0 && k != "progress" && k != "iidfile" {
			t.Errorf("%s has %d meanings", k, n)
		}
	}
	for s, long := range short() {
		if _, ok := table()[long]; !ok {
			t.Errorf("-%s is of nothing", s)
		}
	}
}
