package usage

import (
	"context"
	"flag"
	"io"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"
)

func flags() *flag.FlagSet {
	fs := flag.NewFlagSet("try", flag.ContinueOnError)
	fs.Bool("docker-run", false, "")
	fs.String("container", "", "")
	fs.String("n", "", "")
	fs.Var(new(List), "port", "")
	return fs
}

func TestSplit(t *testing.T) {
	cases := []struct {
		name, line          string
		flags, words, after string
		dashes              bool
		fault               string
	}{
		{"flags first", "--docker-run --container c w", "--docker-run --container c", "w", "", false, ""},
		{"flags last", "w --container c --docker-run", "--container c --docker-run", "w", "", false, ""},
		{"between", "--n x w --docker-run v", "--n x --docker-run", "w v", "", false, ""},
		{"inline value", "w --container=c v", "--container=c", "w v", "", false, ""},
		{"bool does not eat a word", "--docker-run w", "--docker-run", "w", "", false, ""},
		{"a value that looks like a flag", "--container --n w", "--container --n", "w", "", false, ""},
		{"after dashes nothing is looked at", "w --docker-run -- --no-such -it -- x", "--docker-run", "w", "--no-such -it -- x", true, ""},
		{"dashes with nothing behind", "w --", "", "w", "", true, ""},
		{"a lone dash is a word", "- w", "", "- w", "", false, ""},
		{"misspelt", "w --contaner c", "", "", "", false, "did you mean --container?"},
		{"unlike any", "--zzzzzzzz", "", "", "", false, "unknown flag --zzzzzzzz"},
		{"no value", "w --container", "", "", "", false, "needs a value"},
		{"dashes are no value", "w --container -- x", "", "", "", false, "needs a value"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, err := Split(strings.Fields(c.line), flags())
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) || fault.CodeOf(err) != fault.InvalidArgument {
					t.Fatalf("got %v, want a usage fault with %q", err, c.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(l.Flags, strings.Fields(c.flags)) || !slices.Equal(l.Words, strings.Fields(c.words)) || !slices.Equal(l.After, strings.Fields(c.after)) || l.Dashes != c.dashes {
				t.Errorf("got %+v", l)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	known := []string{"connect", "quit", "status", "list", "leave", "replace"}
	for in, want := range map[string]string{"conect": "connect", "conenct": "connect", "satus": "status", "lst": "list", "xyzzy": "", "": "", "repalce": "replace"} {
		if got := Nearest(in, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

// The flags of a raw command are its own only where they come first.
func TestRawAndPlaceOfTheCommand(t *testing.T) {
	var got Line
	var use string
	tool := func() *Tool {
		fs := flag.NewFlagSet("curl", flag.ContinueOnError)
		fs.StringVar(&use, "use", "", "")
		fs.String("output", "text", "")
		other := flag.NewFlagSet("list", flag.ContinueOnError)
		other.StringVar(&use, "use", "", "")
		run := func(_ context.Context, l Line) error { got = l; return nil }
		return &Tool{Name: "ctl", Stdout: io.Discard, Stderr: io.Discard, Commands: []*Command{
			{Name: "curl", Raw: true, Own: []string{"use"}, Flags: fs, Run: run},
			{Name: "list", Flags: other, Run: run},
		}}
	}
	cases := []struct{ line, use, words string }{
		{"curl -sS http://x", "", "-sS http://x"},
		{"curl --use a -sS http://x", "a", "-sS http://x"},
		{"--use=a curl --output f http://x", "a", "--output f http://x"},
		{"curl http://x --use b -- -h", "", "http://x --use b -- -h"},
		{"--use a list w", "a", "w"},
		{"list w --use a", "a", "w"},
	}
	for _, c := range cases {
		use, got = "", Line{}
		if err := tool().Run(t.Context(), strings.Fields(c.line)); err != nil {
			t.Errorf("%s: %v", c.line, err)
		}
		if use != c.use || !slices.Equal(got.Words, strings.Fields(c.words)) {
			t.Errorf("%s: use %q, words %q", c.line, use, got.Words)
		}
	}
}
