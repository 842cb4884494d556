package envfile

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/fault"

	"github.com/docker/cli/opts"
)

// values are what programs have in their environment, and what quoting gets wrong.
func values() map[string]string {
	return map[string]string{
		"EMPTY": "", "PLAIN": "a", "SPACES": "  a b  ", "QUOTES": `it's "so"`, "BACKSLASH": `\n\\ \`, "DOLLAR": `$HOME ${X} $(id) $$ \$`,
		"HASH": "# no comment #", "TAB": "a\tb", "UNICODE": "é✓", "EQUALS": "a=b=c", "BACKTICK": "`id`", "BANG": "!x",
	}
}

func multiline() map[string]string {
	v := values()
	v["LINES"] = "-----BEGIN-----\nabc\n-----END-----\n"
	v["CRLF"] = "a\r\nb"
	return v
}

func entries(vars map[string]string) (env [][]byte) {
	for k, v := range vars {
		env = append(env, []byte(k+"="+v))
	}
	return env
}

func written(t *testing.T, s Syntax, vars map[string]string) []byte {
	t.Helper()
	b, omitted, err := Format(s, entries(vars))
	if err != nil || len(omitted) > 0 {
		t.Fatal(err, omitted)
	}
	return b
}

// Docker's own reader gets what was written.
func TestDocker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, written(t, Docker, values()), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := opts.ReadKVEnvStrings([]string{path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, values())
}

// So does sh; what is exported reaches its children.
func TestShell(t *testing.T) {
	for _, s := range []Syntax{Sh, Export} {
		path := filepath.Join(t.TempDir(), "env")
		vars := multiline()
		vars["BYTES"] = "\xff\xfe"
		if err := os.WriteFile(path, written(t, s, vars), 0o600); err != nil {
			t.Fatal(err)
		}
		script := `. "$1"; env -0`
		if s == Sh {
			script = `set -a; . "$1"; env -0`
		}
		cmd := exec.Command("sh", "-c", script, "sh", path)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		same(t, strings.Split(strings.TrimRight(string(out), "\x00"), "\x00"), vars)
	}
}

func TestJSON(t *testing.T) {
	var got map[string]string
	if err := json.Unmarshal(written(t, JSON, multiline()), &got); err != nil {
		t.Fatal(err)
	}
	same(t, stringsOf(entries(got)), multiline())
}

// Compose's reader undoes these; the forms were tried against compose-go's.
func TestCompose(t *testing.T) {
	got := string(written(t, Compose, map[string]string{"A": "it's \"so\"", "B": `\n$X`, "C": "1\n2", "D": "# $$"}))
	want := `A="it's \"so\""
B="\\n\$X"
C="1\n2"
D="# \$\$"
`
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func stringsOf(env [][]byte) (s []string) {
	for _, e := range env {
		s = append(s, string(e))
	}
	return s
}

func same(t *testing.T, got []string, want map[string]string) {
	t.Helper()
	have := map[string]string{}
	for _, e := range got {
		k, v, _ := strings.Cut(e, "=")
		have[k] = v
	}
	for k, v := range want {
		if g, ok := have[k]; !ok || g != v {
			t.Errorf("%s is %q, want %q", k, g, v)
		}
	}
}

// What a form cannot hold is refused: the variable is named, its value is not.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		s             Syntax
		entry, says   string
		instead, name string
	}{
		{Docker, "CERT=secret\nlines", "several lines", "compose", "CERT"},
		{Docker, "CR=secret\r", "several lines", "compose", "CR"},
		{Docker, "BYTES=secret\xff", "not UTF-8", "sh", "BYTES"},
		{Compose, "BYTES=secret\xff", "not UTF-8", "sh", "BYTES"},
		{JSON, "BYTES=secret\xff", "not UTF-8", "sh", "BYTES"},
	} {
		_, _, err := Format(c.s, [][]byte{[]byte("OK=1"), []byte(c.entry)})
		f := fault.From(err)
		if f == nil || f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, c.says) || !strings.Contains(f.Message, "variable "+c.name+" ") || !strings.HasSuffix(f.Hint, c.instead) {
			t.Errorf("%s %q: %+v", c.s, c.entry, f)
			continue
		}
		if strings.Contains(f.Message+f.Hint, "secret") {
			t.Errorf("%s %q: the value is in %q", c.s, c.entry, f.Message)
		}
	}
	if _, err := Parse("csh"); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), "sh:export") {
		t.Errorf("%v", err)
	}
}

// A name that a form does not know is left out, and told.
func TestOmitted(t *testing.T) {
	for _, c := range []struct {
		s       Syntax
		name    string
		omitted bool
	}{
		{Sh, "settings.ini", true}, {Export, "1st", true}, {Sh, "a-b", true}, {Sh, "_a1", false},
		{Docker, "settings.ini", false}, {Docker, "a b", true}, {Docker, "#a", true},
		{Compose, "settings.ini", false}, {Compose, "a/b", true}, {JSON, "a b", false},
	} {
		text, omitted, err := Format(c.s, [][]byte{[]byte("OK=1"), []byte(c.name + "=x")})
		if err != nil || (len(omitted) == 1) != c.omitted || strings.Contains(string(text), c.name) == c.omitted || !strings.Contains(string(text), "OK") {
			t.Errorf("%s %q: omitted %q, %v: %s", c.s, c.name, omitted, err, text)
		}
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // as of mktemp
		t.Fatal(err)
	}
	remove, err := Write(path, []byte("A=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	b, rerr := os.ReadFile(path)
	if err != nil || rerr != nil || info.Mode().Perm() != 0o600 || !bytes.Equal(b, []byte("A=1\n")) {
		t.Errorf("%v %q, %v, %v", info, b, err, rerr)
	}
	remove()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("not removed: %v", err)
	}
}

func TestWriteIsRefused(t *testing.T) {
	dir := t.TempDir()
	full, link := filepath.Join(dir, "full"), filepath.Join(dir, "link")
	if err := os.WriteFile(full, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(full, link); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{full: "exists", link: "no regular file", dir: "no regular file", filepath.Join(dir, "no", "x"): "no folder"} {
		if _, err := Write(path, []byte("x")); fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
	if b, _ := os.ReadFile(full); string(b) != "mine" {
		t.Errorf("overwritten with %q", b)
	}
}

// A process that is killed leaves no file: the guard sees its pipe end.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if os.Getenv("ENVFILE_TEST") != "" {
		if _, err := Write(os.Getenv("ENVFILE_TEST"), []byte("A=1\n")); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "ENVFILE_TEST="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the file is written", func() bool { b, _ := os.ReadFile(path); return len(b) > 0 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	until(t, "the file is removed", func() bool { _, err := os.Stat(path); return os.IsNotExist(err) })
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
