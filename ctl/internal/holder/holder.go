// Package holder finds the process of this machine that listens on a port, from
// /proc (proc(5)): the Docker Engine knows of containers only.
//
// Without root it sees one's own processes; of the others it knows nothing.
package holder

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is who listens.
type Process struct {
	PID  int
	Name string
}

// String is it for people.
func (p Process) String() string { return fmt.Sprintf("%s (process %d)", p.Name, p.PID) }

// Of returns the process that listens on a port, TCP or UDP, if it can be seen.
func Of(port uint16) (Process, bool) {
	sockets := map[string]bool{}
	for file, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} {
		listening(filepath.Join("/proc/net", file), state, port, sockets)
	}
	if len(sockets) == 0 {
		return Process{}, false
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return Process{}, false
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !sockets[to] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		pid, err := strconv.Atoi(filepath.Base(dir))
		name, nerr := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil && nerr == nil {
			return Process{pid, strings.TrimSpace(string(name))}, true
		}
	}
	return Process{}, false
}

// listening adds the sockets in a table of the kernel's that have the state and
// the local port, as /proc/PID/fd links to them.
func listening(table, state string, port uint16, sockets map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return // no IPv6, or no Linux
	}
	defer f.Close()
	want := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) > 9 && w[3] == state && strings.HasSuffix(w[1], want) {
			sockets["socket:["+w[9]+"]"] = true
		}
	}
}
