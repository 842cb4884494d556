package cli

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/hostspace"
	"berth.dev/lease"
)

// hostPorts reads --port of a handler that is an ordinary container on a machine
// that is connected itself: LOCAL[:CONTAINER[:ID]]. The traffic comes to LOCAL at
// 127.0.0.1, and from there to the container's port, by default the same; ID is
// whose traffic it is. It returns the ports as connector takes them, and the flags
// of docker run that lead from one to the other.
//
// A second word that is no number is an ID: --port 8080:http. A number is the
// container's port, and for a replace, whose handler has the place of the
// workload's container, that one's port too.
func hostPorts(kind lease.Kind, given []string) (ports, publish []string, err error) {
	for _, g := range given {
		words, protocol, _ := strings.Cut(g, "/")
		w := strings.Split(words, ":")
		local, container, id := w[0], "", ""
		switch {
		case len(w) == 2 && isPort(w[1]):
			container = w[1]
			if kind == lease.Replace {
				id = container
			}
		case len(w) == 2:
			id = w[1]
		case len(w) == 3:
			container, id = w[1], w[2]
		}
		if !isPort(local) || container != "" && !isPort(container) || len(w) > 3 {
			return nil, nil, fault.New(fault.InvalidArgument, "--port 8080:80:http", "--port %s is not LOCAL[:CONTAINER[:ID]], with numbers for the first two", g)
		}
		suffix := ""
		if protocol != "" {
			suffix = "/" + protocol
		}
		if container != "" && container != local {
			publish = append(publish, "-p", "127.0.0.1:"+local+":"+container+strings.ToLower(suffix))
		}
		if id != "" {
			local += ":" + id
		}
		ports = append(ports, local+suffix)
	}
	return ports, publish, nil
}

// fitHost makes the flags fit a handler in a container where the machine itself is
// connected, and returns the arguments of docker run.
func (f *engageFlags) fitHost(at place, args []string) ([]string, error) {
	if _, onHost := at.(*hostspace.Space); !onHost || !f.inContainer() {
		return args, nil
	}
	if err := onlyLoopback(f.address); err != nil {
		return nil, err
	}
	ports, publish, err := hostPorts(f.kind, f.ports)
	if err != nil {
		return nil, err
	}
	f.ports = ports
	if f.build.given() { // what stands behind -- may be nothing, and mean IMAGE
		f.build.publish = publish
		return args, nil
	}
	return slices.Concat(publish, args), nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// onlyLoopback refuses another address of a handler that is published at the
// machine's loopback address.
func onlyLoopback(address string) error {
	if a, err := netip.ParseAddr(address); err == nil && !a.IsLoopback() {
		return fault.New(fault.InvalidArgument, "-- -p "+address+":PORT:PORT IMAGE", "--address %s: the ports of a handler in a container are published at 127.0.0.1; publish others by docker run's own -p", address)
	}
	return nil
}
