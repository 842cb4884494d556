// Package resolvconf owns /etc/resolv.conf of the daemon container.
//
// Docker mounts that file into the container, and into every container that
// joins the container's network, by its inode: it can only be rewritten in
// place, never replaced. What it said before is kept in comments inside the
// file itself, so that a vif that was killed and started again finds the
// original, and so does a person.
package resolvconf

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Path is where resolvers look.
const Path = "/etc/resolv.conf"

// keep precedes every line of the original in a rewritten file.
const keep = "#berth-original# "

// Config is what a resolv.conf says (resolv.conf(5)).
type Config struct {
	Servers []netip.Addr
	Search  []string // without trailing dots
	Options []string
}

// Ndots is the number of dots from which on a name is tried as it is first.
func (c Config) Ndots() int {
	for _, o := range c.Options {
		if n, ok := strings.CutPrefix(o, "ndots:"); ok {
			if v, err := strconv.Atoi(n); err == nil && v >= 0 {
				return min(v, 15)
			}
		}
	}
	return 1
}

// Parse reads a resolv.conf; what it does not understand it ignores, as
// resolvers do.
func Parse(data []byte) Config {
	var c Config
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.Servers = append(c.Servers, a)
			}
		case "domain":
			c.Search = []string{strings.Trim(f[1], ".")}
		case "search":
			c.Search = nil
			for _, s := range f[1:] {
				if s = strings.Trim(s, "."); s != "" {
					c.Search = append(c.Search, s)
				}
			}
		case "options":
			c.Options = append(c.Options, f[1:]...)
		}
	}
	return c
}

// File is a resolv.conf and what it said before it was rewritten.
type File struct {
	path     string
	original []byte
	stale    bool // rewritten by one who did not restore it
}

// Open reads the file, or, if it is a rewritten one, the original inside it. A
// missing file is an empty one.
func Open(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the resolver's configuration: %w", err)
	}
	was, stale := original(data)
	return &File{path: path, original: was, stale: stale}, nil
}

// Recover restores the file if a vif that was killed left it rewritten.
func (f *File) Recover() error {
	if !f.stale {
		return nil
	}
	return f.Restore()
}

func original(data []byte) (was []byte, rewritten bool) {
	var kept []byte
	found := false
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, ok := strings.CutPrefix(sc.Text(), strings.TrimSpace(keep))
		if !ok {
			continue
		}
		found = true
		kept = append(append(kept, strings.TrimPrefix(line, " ")...), '\n')
	}
	if !found {
		return data, false
	}
	return kept, true
}

// Original is what the file said before.
func (f *File) Original() Config { return Parse(f.original) }

// Rewrite makes resolvers ask server, with the given domains before those that
// the original searched.
func (f *File) Rewrite(server netip.Addr, search []string) (Config, error) {
	was := f.Original()
	c := Config{Servers: []netip.Addr{server}, Options: options(was.Options)}
	seen := map[string]bool{}
	for _, s := range append(append([]string(nil), search...), was.Search...) {
		if !seen[strings.ToLower(s)] {
			seen[strings.ToLower(s)] = true
			c.Search = append(c.Search, s)
		}
	}
	var b bytes.Buffer
	fmt.Fprintln(&b, "# Written by Berth; names outside of the cluster go to the original servers below.")
	fmt.Fprintln(&b, "nameserver", server)
	fmt.Fprintln(&b, "search", strings.Join(c.Search, " "))
	fmt.Fprintln(&b, "options", strings.Join(c.Options, " "))
	for line := range strings.Lines(string(f.original)) {
		fmt.Fprintf(&b, "%s%s\n", keep, strings.TrimRight(line, "\r\n"))
	}
	if len(f.original) == 0 {
		fmt.Fprintln(&b, strings.TrimSpace(keep))
	}
	return c, f.write(b.Bytes())
}

// options are the original ones with the ndots of a pod, and less what makes no
// sense with a single server nearby.
func options(was []string) []string {
	out := []string{"ndots:5"}
	for _, o := range was {
		if !strings.HasPrefix(o, "ndots:") && o != "rotate" {
			out = append(out, o)
		}
	}
	return out
}

// Restore writes the original back, in place as well.
func (f *File) Restore() error { return f.write(f.original) }

// write keeps the inode. Readers may see a file that is half written, which is
// the price of it; they see it once and for microseconds.
func (f *File) write(data []byte) error {
	w, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write the resolver's configuration: %w", err)
	}
	_, err = w.WriteAt(data, 0)
	if err == nil {
		err = w.Truncate(int64(len(data)))
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write the resolver's configuration: %w", err)
	}
	return nil
}
