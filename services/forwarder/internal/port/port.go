// Package port is a port with its protocol, as Docker writes it: 80/tcp, 53/udp.
package port

import (
	"fmt"
	"strconv"
	"strings"
)

// Port is one port of one protocol.
type Port struct {
	Number   uint16
	Protocol string // tcp or udp
}

// String is Docker's way to write it.
func (p Port) String() string { return strconv.Itoa(int(p.Number)) + "/" + p.Protocol }

// Parse reads a list with commas. None at all is an error, and so is the same
// port twice.
func Parse(list string) ([]Port, error) {
	var ports []Port
	seen := map[Port]bool{}
	for s := range strings.SplitSeq(list, ",") {
		num, proto, ok := strings.Cut(s, "/")
		n, err := strconv.ParseUint(num, 10, 16)
		if !ok || err != nil || n == 0 || proto != "tcp" && proto != "udp" {
			return nil, fmt.Errorf("%q is no port: write it as 80/tcp or 53/udp", s)
		}
		p := Port{uint16(n), proto}
		if seen[p] {
			return nil, fmt.Errorf("%v is named twice", p)
		}
		seen[p] = true
		ports = append(ports, p)
	}
	return ports, nil
}

// Join is the list that Parse reads.
func Join(ports []Port) string {
	s := make([]string, len(ports))
	for i, p := range ports {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}
