package cli

import (
	"context"
	"flag"
	"strings"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/envfile"
)

// envFlags are those that bring an engagement's environment to the user. Its
// values come from connector by a reply of their own (EngagementEnvironment),
// never with the facts.
type envFlags struct {
	file   string
	json   string
	syntax string
}

func (f *envFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.file, "env-file", "", "write the environment to `FILE` (- for stdout), which is removed at the engagement's end")
	fs.StringVar(&f.json, "env-json", "", "the same as JSON")
	fs.StringVar(&f.syntax, "env-syntax", "", "the `SYNTAX` of --env-file: docker (the default), compose, sh, sh:export or json")
}

// check looks at the files before anything is touched. asJSON: stdout is for facts.
func (f *envFlags) check(asJSON bool) error {
	if f.syntax != "" {
		if _, err := envfile.Parse(f.syntax); err != nil {
			return err
		}
		if f.file == "" {
			return fault.New(fault.InvalidArgument, "--env-file FILE --env-syntax "+f.syntax, "--env-syntax is of use with --env-file only")
		}
	}
	if f.file != "" && f.file == f.json {
		return fault.New(fault.InvalidArgument, "", "--env-file and --env-json name the same file")
	}
	for _, path := range []string{f.file, f.json} {
		switch path {
		case "":
		case "-":
			if asJSON {
				return fault.New(fault.InvalidArgument, "--env-file FILE", "with --output json the environment cannot go to stdout, where the facts go")
			}
		default:
			if err := envfile.Check(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *envFlags) given() bool { return f.file != "" || f.json != "" }

// environment asks for what the engagement's handler has, and writes the files
// that the user asked for.
func (h *handling) environment(ctx context.Context, f *envFlags) (command.Environment, error) {
	rep, err := bus.Call(ctx, h.s.conn, command.EngagementEnvironment, "", command.EngagementRef{Engagement: h.eng.ID()})
	if err != nil {
		return rep, err
	}
	syntax := envfile.Docker
	if f.syntax != "" {
		syntax = envfile.Syntax(f.syntax)
	}
	for _, w := range []struct {
		path   string
		syntax envfile.Syntax
	}{{f.file, syntax}, {f.json, envfile.JSON}} {
		if w.path == "" {
			continue
		}
		text, omitted, err := envfile.Format(w.syntax, rep.Env)
		if err != nil {
			return rep, err
		}
		if len(omitted) > 0 {
			h.app.print.Notice("ctl: not in %s, since the syntax %s has no such names: %s", w.path, w.syntax, strings.Join(omitted, ", "))
		}
		if w.path == "-" {
			if _, err := h.app.Stdout.Write(text); err != nil {
				return rep, err
			}
			continue
		}
		remove, err := envfile.Write(w.path, text)
		if err != nil {
			return rep, err
		}
		h.remove = append(h.remove, remove)
		h.app.print.Progress("  environment                 %d variables in %s, removed at the end", len(rep.Env), w.path)
	}
	return rep, nil
}
