// Package envfile writes an environment as a file in the forms that shells and
// tools read: for users who want one. Handlers get theirs without a file.
//
// A form that cannot hold a value as it is refuses it, naming the variable and
// never its value: a file that says something else than the container has is
// worse than none.
//
// A file holds secrets, so it lives as long as its engagement: mode 0600, and
// removed when ctl ends, however it ends; see [Write].
package envfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"berth.dev/bus/fault"
)

// Syntax is the form of a file.
type Syntax string

// The forms.
const (
	Docker  Syntax = "docker"    // docker run --env-file: KEY=value as it is, one on a line
	Compose Syntax = "compose"   // env_file of Docker Compose: KEY="value", with escapes
	Sh      Syntax = "sh"        // POSIX sh: KEY='value'
	Export  Syntax = "sh:export" // the same with export
	JSON    Syntax = "json"      // an object
)

// syntaxes are all of them, in the order of their listing.
var syntaxes = []Syntax{Docker, Compose, Sh, Export, JSON}

// Parse reads the name of a form.
func Parse(name string) (Syntax, error) {
	if slices.Contains(syntaxes, Syntax(name)) {
		return Syntax(name), nil
	}
	var names []string
	for _, s := range syntaxes {
		names = append(names, string(s))
	}
	return "", fault.New(fault.InvalidArgument, "--env-syntax sh", "--env-syntax is one of %s, not %q", strings.Join(names, ", "), name)
}

// Format is env, whose entries are KEY=value, in a form; sorted by key.
func Format(s Syntax, env [][]byte) ([]byte, error) {
	sorted := slices.Clone(env)
	slices.SortFunc(sorted, func(a, b []byte) int { return bytes.Compare(key(a), key(b)) })
	if s == JSON {
		return object(sorted)
	}
	var b bytes.Buffer
	for _, e := range sorted {
		k, v, _ := strings.Cut(string(e), "=")
		if why := s.refuses(k, v); why != "" {
			return nil, fault.New(fault.FailedPrecondition, "--env-syntax "+string(s.instead(k, v)), "the variable %s cannot be written in the syntax %s: %s", k, s, why)
		}
		switch s {
		case Docker:
			fmt.Fprintf(&b, "%s=%s\n", k, v)
		case Compose:
			fmt.Fprintf(&b, "%s=\"%s\"\n", k, composeEscapes().Replace(v))
		case Export:
			b.WriteString("export ")
			fallthrough
		default:
			fmt.Fprintf(&b, "%s='%s'\n", k, strings.ReplaceAll(v, "'", `'\''`))
		}
	}
	return b.Bytes(), nil
}

func key(e []byte) []byte {
	k, _, _ := bytes.Cut(e, []byte("="))
	return k
}

// composeEscapes are those that Compose undoes within double quotes; a dollar
// sign would begin an interpolation.
func composeEscapes() *strings.Replacer {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "\n", `\n`, "\r", `\r`)
}

// refuses says why a form cannot hold a variable; "" if it can.
func (s Syntax) refuses(k, v string) string {
	switch {
	case s == Docker && strings.ContainsAny(v, "\n\r"):
		return "its value has several lines, which an env file of Docker cannot hold"
	case s == Docker && (strings.ContainsAny(k, " \t\v\f\n\r\u0085\u00a0") || strings.HasPrefix(k, "#")):
		return "its name has a space in it, or begins with #"
	case s == Compose && strings.ContainsFunc(k, notCompose):
		return "its name has other characters than letters, digits, _, . and -"
	case (s == Sh || s == Export) && !isShell(k):
		return "its name is none for a variable of sh"
	case s != Sh && s != Export && !utf8.ValidString(v):
		return "its value is not UTF-8"
	}
	return ""
}

// instead is a form that can hold it.
func (s Syntax) instead(k, v string) Syntax {
	for _, o := range []Syntax{Sh, Compose, JSON} {
		if o != s && o.refuses(k, v) == "" {
			return o
		}
	}
	return JSON
}

func notCompose(r rune) bool {
	return !(r == '_' || r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
}

func isShell(k string) bool {
	return k != "" && (k[0] < '0' || k[0] > '9') && !strings.ContainsFunc(k, func(r rune) bool { return notCompose(r) || r == '.' || r == '-' })
}

func object(env [][]byte) ([]byte, error) {
	all := map[string]string{}
	for _, e := range env {
		k, v, _ := strings.Cut(string(e), "=")
		if !utf8.ValidString(v) {
			return nil, fault.New(fault.FailedPrecondition, "--env-file F --env-syntax sh", "the variable %s cannot be written as JSON: its value is not UTF-8", k)
		}
		all[k] = v
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(all); err != nil {
		return nil, fmt.Errorf("write the environment as JSON: %w", err)
	}
	return b.Bytes(), nil
}
