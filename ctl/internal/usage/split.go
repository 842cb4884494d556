// Package usage owns the shape of the command line: which word is the command,
// which are its flags, what stands after "--", what --help prints, and what a
// misspelt word was probably meant to be.
//
// ff and package flag stop at the first word that is no flag, and say nothing
// about flags behind it. So the line is split here first; ff then parses the
// flags alone, with values from the environment (BERTH_*) for those not given.
//
// What stands after "--" belongs to somebody else (Docker, a command of the
// user's) and is never looked at.
package usage

import (
	"flag"
	"strings"

	"berth.dev/bus/fault"
)

// Line is a command line, taken apart.
type Line struct {
	Flags  []string // with their values, in order, as given
	Words  []string // positional
	After  []string // what stood after "--"
	Dashes bool     // whether there was a "--"
}

// boolFlag is the interface by which package flag knows that a flag stands alone.
type boolFlag interface{ IsBoolFlag() bool }

// TakesValue reports whether a flag consumes the word behind it.
func TakesValue(f *flag.Flag) bool {
	b, ok := f.Value.(boolFlag)
	return !ok || !b.IsBoolFlag()
}

// name is the name of the flag that word is, and whether it carries a value
// behind "=". It is empty for what is no flag: a word, "-" and "--".
func name(word string) (flagName string, inline bool) {
	if len(word) < 2 || word[0] != '-' || word == "--" {
		return "", false
	}
	n := strings.TrimPrefix(word[1:], "-")
	n, _, inline = strings.Cut(n, "=")
	return n, inline
}

// Split takes args apart with the flags that fs defines. An unknown flag is a
// fault that names the nearest known one; -h and --help pass.
func Split(args []string, fs *flag.FlagSet) (Line, error) {
	var l Line
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			l.After, l.Dashes = args[i+1:], true
			return l, nil
		}
		n, inline := name(a)
		if n == "" {
			l.Words = append(l.Words, a)
			continue
		}
		l.Flags = append(l.Flags, a)
		if n == "h" || n == "help" {
			continue
		}
		f := fs.Lookup(n)
		if f == nil {
			return l, unknownFlag(n, fs)
		}
		if inline || !TakesValue(f) {
			continue
		}
		if i+1 == len(args) || args[i+1] == "--" {
			return l, fault.New(fault.InvalidArgument, "ctl "+fs.Name()+" --help", "the flag %s needs a value", Dashed(n))
		}
		i++
		l.Flags = append(l.Flags, args[i])
	}
	return l, nil
}

// Given reports whether a flag stands on the line itself, as opposed to having
// its value from the environment or by default.
func (l Line) Given(flags ...string) bool {
	for _, w := range l.Flags {
		n, _ := name(w)
		for _, f := range flags {
			if n == f {
				return true
			}
		}
	}
	return false
}

// Dashed is a flag as people write it: -n, --name.
func Dashed(n string) string {
	if len(n) == 1 {
		return "-" + n
	}
	return "--" + n
}

func unknownFlag(n string, fs *flag.FlagSet) error {
	var known []string
	fs.VisitAll(func(f *flag.Flag) {
		if len(f.Name) > 1 {
			known = append(known, f.Name)
		}
	})
	hint := "ctl " + fs.Name() + " --help"
	msg := "unknown flag %s of `ctl %s`"
	if near := Nearest(n, known); near != "" {
		return fault.New(fault.InvalidArgument, hint, msg+"; did you mean --%s?", Dashed(n), fs.Name(), near)
	}
	return fault.New(fault.InvalidArgument, hint, msg, Dashed(n), fs.Name())
}
