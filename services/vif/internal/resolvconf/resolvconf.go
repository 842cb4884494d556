// Package resolvconf owns /etc/resolv.conf, of the daemon container or of this
// machine.
//
// Docker mounts that file into the container, and into every container that
// joins the container's network, by its inode: it can only be rewritten in
// place, never replaced. What it said before is kept in comments inside the
// file itself, so that a vif that was killed and started again finds the
// original, and so does a person.
//
// In a container the file asks the VIF's server alone ([Container]); on a machine
// it names the original servers too, and may be written by others at any time
// ([Host]).
package resolvconf

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	path  string
	stale bool // rewritten by one who did not restore it

	mu       sync.Mutex
	original []byte
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
func (f *File) Original() Config { return Parse(f.said()) }

// said is the original as it is.
func (f *File) said() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.original
}

// Rewrite makes the file say c, with the original in comments.
func (f *File) Rewrite(c Config) error {
	was := f.said()
	var b bytes.Buffer
	fmt.Fprintln(&b, "# Written by Berth, which puts back what is in the comments below.")
	for _, s := range c.Servers {
		fmt.Fprintln(&b, "nameserver", s)
	}
	if len(c.Search) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(c.Search, " "))
	}
	if len(c.Options) > 0 {
		fmt.Fprintln(&b, "options", strings.Join(c.Options, " "))
	}
	for line := range strings.Lines(string(was)) {
		fmt.Fprintf(&b, "%s%s\n", keep, strings.TrimRight(line, "\r\n"))
	}
	if len(was) == 0 {
		fmt.Fprintln(&b, strings.TrimSpace(keep))
	}
	return f.write(b.Bytes())
}

// domains are the given ones, and behind them those of the original, each once.
func domains(search, original []string) (all []string) {
	seen := map[string]bool{}
	for _, s := range slices.Concat(search, original) {
		if !seen[strings.ToLower(s)] {
			seen[strings.ToLower(s)] = true
			all = append(all, s)
		}
	}
	return all
}

// Restore writes the original back, in place as well. A file that somebody else
// has written since is left as it is.
func (f *File) Restore() error {
	now, err := os.ReadFile(f.path)
	if err == nil && !Rewritten(now) {
		return nil
	}
	return f.write(f.said())
}

// Rewritten reports whether this is what Rewrite writes.
func Rewritten(data []byte) bool {
	_, rewritten := original(data)
	return rewritten
}

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
