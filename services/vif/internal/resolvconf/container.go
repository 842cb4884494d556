package resolvconf

import (
	"net"
	"net/netip"
	"strings"
)

// Container is the file of a daemon container: all that is in the container's
// network asks the VIF's server, and nobody else, with the search list of a pod.
type Container struct{ *File }

// Sockets are none: the server has its own address.
func (Container) Sockets() ([]net.PacketConn, []net.Listener) { return nil, nil }

// Point makes resolvers ask server, with the given domains before those that the
// original searched. It returns the domains.
func (c Container) Point(server netip.Addr, search, _ []string) ([]string, error) {
	was := c.Original()
	now := Config{Servers: []netip.Addr{server}, Search: domains(search, was.Search), Options: likePod(was.Options)}
	return now.Search, c.Rewrite(now)
}

// likePod are the original options with the ndots of a pod, and less what makes
// no sense with a single server nearby.
func likePod(was []string) []string {
	out := []string{"ndots:5"}
	for _, o := range was {
		if !strings.HasPrefix(o, "ndots:") && o != "rotate" {
			out = append(out, o)
		}
	}
	return out
}
