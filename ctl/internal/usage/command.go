package usage

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"berth.dev/bus/fault"

	"github.com/peterbourgon/ff/v3"
	"github.com/peterbourgon/ff/v3/ffcli"
)

// EnvPrefix is that of the environment variables which stand in for flags that
// were not given: BERTH_CONTEXT for --context.
const EnvPrefix = "BERTH"

// Command is one command of ctl.
type Command struct {
	Name     string
	Synopsis string // what stands behind "ctl ", as in replace W [flags] -- IMAGE
	Short    string
	Long     string
	Examples []string // whole lines
	Flags    *flag.FlagSet
	// Raw: nothing behind the command's name is looked at, but flags of Own that
	// come first. For commands that hand their arguments on untouched.
	Raw bool
	Own []string
	Run func(context.Context, Line) error
}

// Tool is ctl: its commands in the order of its help.
type Tool struct {
	Name     string
	Short    string
	Commands []*Command
	Stdout   io.Writer // help that was asked for
	Stderr   io.Writer // help that was not
}

// Run runs the command that args ask for.
func (t *Tool) Run(ctx context.Context, args []string) error {
	at := t.commandAt(args)
	if at < 0 {
		for _, a := range args {
			n, _ := name(a)
			switch n {
			case "h", "help":
				fmt.Fprint(t.Stdout, t.help())
				return nil
			case "version":
				return t.Run(ctx, []string{"version"})
			}
		}
		fmt.Fprint(t.Stderr, t.help())
		return fault.New(fault.InvalidArgument, t.Name+" --help", "no command given")
	}
	word := args[at]
	rest := slices.Concat(args[:at], args[at+1:])
	if word == "help" {
		return t.helpOn(rest)
	}
	c := t.find(word)
	if c == nil {
		return t.unknown(word)
	}
	line, err := c.split(args[:at], args[at+1:], rest)
	if err != nil {
		return err
	}
	if line.Given("h", "help") {
		fmt.Fprint(t.Stdout, c.help(t.Name))
		return nil
	}
	return t.exec(ctx, c, line)
}

// exec lets ffcli parse the flags, with the environment behind them, and runs.
func (t *Tool) exec(ctx context.Context, c *Command, line Line) error {
	c.Flags.SetOutput(io.Discard) // what is wrong is told by the returned error alone
	fc := &ffcli.Command{
		Name: c.Name, FlagSet: c.Flags,
		Options: []ff.Option{ff.WithEnvVarPrefix(EnvPrefix)},
		Exec:    func(ctx context.Context, _ []string) error { return c.Run(ctx, line) },
	}
	root := &ffcli.Command{Name: t.Name, FlagSet: flag.NewFlagSet(t.Name, flag.ContinueOnError), Subcommands: []*ffcli.Command{fc}}
	if err := root.Parse(slices.Concat([]string{c.Name}, line.Flags)); err != nil {
		return fault.New(fault.InvalidArgument, t.Name+" "+c.Name+" --help", "%v", err)
	}
	return root.Run(ctx)
}

// split takes the line apart; see Raw.
func (c *Command) split(before, behind, rest []string) (Line, error) {
	if !c.Raw {
		return Split(rest, c.Flags)
	}
	if len(behind) == 1 && (behind[0] == "--help" || behind[0] == "-h") {
		return Line{Flags: behind}, nil
	}
	own := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	c.Flags.VisitAll(func(f *flag.Flag) {
		if slices.Contains(c.Own, f.Name) {
			own.Var(f.Value, f.Name, f.Usage)
		}
	})
	n := 0
	for n < len(behind) {
		fn, inline := name(behind[n])
		f := own.Lookup(fn)
		if fn == "" || f == nil || !strings.HasPrefix(behind[n], "--") {
			break
		}
		n++
		if !inline && TakesValue(f) {
			n++
		}
	}
	n = min(n, len(behind))
	line, err := Split(slices.Concat(before, behind[:n]), c.Flags)
	line.Words = behind[n:]
	return line, err
}

// commandAt is the index of the command's name: the first word that is neither
// a flag nor the value of one, by what any command knows; -1 for none.
func (t *Tool) commandAt(args []string) int {
	for i := 0; i < len(args); i++ {
		n, inline := name(args[i])
		if n == "" {
			if args[i] == "--" {
				return -1
			}
			return i
		}
		for _, c := range t.Commands {
			if f := c.Flags.Lookup(n); f != nil {
				if !inline && TakesValue(f) {
					i++
				}
				break
			}
		}
	}
	return -1
}

func (t *Tool) find(word string) *Command {
	for _, c := range t.Commands {
		if c.Name == word {
			return c
		}
	}
	return nil
}

func (t *Tool) unknown(word string) error {
	var names []string
	for _, c := range t.Commands {
		names = append(names, c.Name)
	}
	if near := Nearest(word, names); near != "" {
		return fault.New(fault.InvalidArgument, t.Name+" "+near+" --help", "unknown command %q; did you mean %q?", word, near)
	}
	return fault.New(fault.InvalidArgument, t.Name+" --help", "unknown command %q", word)
}

func (t *Tool) helpOn(words []string) error {
	if len(words) == 0 {
		fmt.Fprint(t.Stdout, t.help())
		return nil
	}
	c := t.find(words[0])
	if c == nil {
		return t.unknown(words[0])
	}
	fmt.Fprint(t.Stdout, c.help(t.Name))
	return nil
}

func (t *Tool) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage:\n  %s COMMAND [flags]\n\nCommands:\n", t.Short, t.Name)
	tw := tabwriter.NewWriter(&b, 0, 2, 2, ' ', 0)
	for _, c := range t.Commands {
		fmt.Fprintf(tw, "  %s\t%s\n", c.Name, c.Short)
	}
	_ = tw.Flush()
	fmt.Fprintf(&b, "\nHelp on one: %s COMMAND --help\n", t.Name)
	return b.String()
}

func (c *Command) help(tool string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage:\n  %s %s\n", c.Short, tool, c.Synopsis)
	if c.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(c.Long))
	}
	b.WriteString("\nExamples:\n")
	for _, e := range c.Examples {
		fmt.Fprintf(&b, "  %s\n", e)
	}
	b.WriteString("\nFlags (each also as an environment variable, BERTH_ and its name: BERTH_OUTPUT):\n")
	tw := tabwriter.NewWriter(&b, 0, 2, 2, ' ', 0)
	c.Flags.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		if value != "" {
			value = " " + value
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			text += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(tw, "  %s%s\t%s\n", Dashed(f.Name), value, text)
	})
	_ = tw.Flush()
	return b.String()
}

// List is a flag that may be given several times, or once with commas.
type List []string

// String is the list as it was given.
func (l *List) String() string { return strings.Join(*l, ",") }

// Set adds what one occurrence of the flag says.
func (l *List) Set(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	*l = append(*l, strings.Split(s, ",")...)
	return nil
}
