package handlerrun

import (
	"io"
	"os"
	"regexp"
	"testing"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/pflag"
)

// docs/docker-run.md is written from runner's table, which cannot see Docker's
// own flags. Here they are: each is in it, and nothing else is.
func TestEveryFlagIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/docker-run.md")
	if err != nil {
		t.Fatal(err)
	}
	dc, err := command.NewDockerCli(command.WithOutputStream(io.Discard), command.WithErrorStream(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	flags := runCommand(dc).Flags()
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`(-{1,2})([a-zA-Z0-9-]+)( [^`]*|=[^`]*)?`").FindAllStringSubmatch(string(doc), -1) {
		name := m[2]
		if m[1] == "-" {
			f := flags.ShorthandLookup(name)
			if f == nil {
				t.Errorf("-%s is documented, and Docker has no such flag", name)
				continue
			}
			name = f.Name
		}
		if flags.Lookup(name) == nil {
			t.Errorf("--%s is documented, and Docker has no such flag", name)
		}
		documented[name] = true
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" && !documented[f.Name] {
			t.Errorf("--%s is not in docs/docker-run.md: say in services/runner/internal/handler/table.go what becomes of it", f.Name)
		}
	})
}
