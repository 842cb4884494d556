// Package envfile writes an environment as a file in the forms that shells and
// tools read: for users who want one. Handlers get theirs without a file.
//
// A form that cannot hold a value as it is refuses it, naming the variable and
// never its value: a file that says something else than the container has is
// worse than none. A variable whose name a form does not know (a config map's
// settings.ini in sh) is left out, and told: its reader could not have it anyway.
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

// Format is env, whose entries are KEY=value, in a form; sorted by key. omitted
// are the names that the form does not know.
func Format(s Syntax, env [][]byte) (text []byte, omitted []string, err error) {
	sorted := slices.Clone(env)
	slices.SortFunc(sorted, func(a, b []byte) int { return bytes.Compare(key(a), key(b)) })
	if s == JSON {
		text, err = object(sorted)
		return text, nil, err
	}
	var b bytes.Buffer
	for _, e := range sorted {
		k, v, _ := strings.Cut(string(e), "=")
		if s.lacks(k) {
			omitted = append(omitted, k)
			continue
		}
		if why := s.refuses(v); why != "" {
			return nil, nil, fault.New(fault.FailedPrecondition, "--env-syntax "+string(s.instead(v)), "the variable %s cannot be written in the syntax %s: %s", k, s, why)
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
	return b.Bytes(), omitted, nil
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

// lacks reports whether a form has no variable of that name.
func (s Syntax) lacks(k string) bool {
	switch s {
	case Docker:
		return strings.ContainsAny(k, " \t\v\f\n\r\u0085\u00a0") || strings.HasPrefix(k, "#")
	case Compose:
		return strings.ContainsFunc(k, notCompose)
	case Sh, Export:
		return !isShell(k)
	}
	return false
}

// refuses says why a form cannot hold a value; "" if it can.
func (s Syntax) refuses(v string) string {
	switch {
	case s == Docker && strings.ContainsAny(v, "\n\r"):
		return "its value has several lines, which an env file of Docker cannot hold"
	case s != Sh && s != Export && !utf8.ValidString(v):
		return "its value is not UTF-8"
	}
	return ""
}

// instead is a form that can hold it.
func (s Syntax) instead(v string) Syntax {
	if s == Docker && utf8.ValidString(v) {
		return Compose
	}
	return Sh
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
