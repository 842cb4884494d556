package resolvconf

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// Host is the file of a machine whose names no service of its own resolves.
//
// Programs ask the VIF's server on an address of the loopback network, and the
// original servers only when that one does not answer. That is the net under a
// vif that is killed: its socket is gone with it, the kernel refuses what is sent
// there, and resolvers go on to the next server at once; also after a machine
// that lost its power has started again. The original servers' order is lost
// to none: see [File.Restore].
//
// Others may write the file too (NetworkManager, a DHCP client, resolvconf). What
// they write is the new original, and is written over again with what is ours.
// A symbolic link stays one: what it leads to is written.
type Host struct {
	*File
	log *slog.Logger

	mu     sync.Mutex
	served netip.Addr // on which Sockets listens; none: on no address of its own
	stop   chan struct{}
	ended  chan struct{}
}

// NewHost is the machine's file.
func NewHost(f *File, log *slog.Logger) *Host { return &Host{File: f, log: log} }

// loopbacks are the addresses to try: 127.0.0.1 itself belongs to a resolver of
// the user's, if there is one, and 127.0.0.53 and .54 to systemd's.
var loopbacks = []string{"127.0.98.53", "127.0.98.54", "127.0.98.55"}

// Sockets are where the server is to listen for this machine's programs; none
// where somebody has port 53 of every address. Then they ask at the VIF's own.
func (h *Host) Sockets() ([]net.PacketConn, []net.Listener) {
	for _, a := range loopbacks {
		at := net.JoinHostPort(a, "53")
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			h.log.Debug("no DNS server here", "address", at, "err", err)
			continue
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			h.log.Debug("no DNS server here", "address", at, "err", err)
			_ = pc.Close()
			continue
		}
		h.mu.Lock()
		h.served = netip.MustParseAddr(a)
		h.mu.Unlock()
		return []net.PacketConn{pc}, []net.Listener{l}
	}
	return nil, nil
}

// Point makes resolvers ask the server first, and search the given domains first.
// server is its address at the VIF.
func (h *Host) Point(server netip.Addr, search, _ []string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.served.IsValid() {
		server = h.served
	}
	now := h.beside(server, search)
	if err := h.Rewrite(now); err != nil {
		return nil, err
	}
	if h.stop == nil {
		h.stop, h.ended = make(chan struct{}), make(chan struct{})
		go h.watch(server, search)
	}
	return now.Search, nil
}

// maxServers is how many of the servers in the file resolvers heed (resolv.conf(5)).
const maxServers = 3

// beside is the configuration with the server before the original ones.
func (h *Host) beside(server netip.Addr, search []string) Config {
	was := h.Original()
	servers := append([]netip.Addr{server}, was.Servers...)
	return Config{
		Servers: servers[:min(len(servers), maxServers)],
		Search:  domains(search, was.Search),
		// One server after the other, and not each in turn.
		Options: slices.DeleteFunc(slices.Clone(was.Options), func(o string) bool { return o == "rotate" }),
	}
}

// watchEvery is how often is looked whether somebody else wrote the file. Not by
// inotify: what the file is, behind links, may change with what it says.
const watchEvery = time.Second

// watch writes the file again when somebody else has, until Restore.
func (h *Host) watch(server netip.Addr, search []string) {
	defer close(h.ended)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
		}
		data, err := os.ReadFile(h.path)
		if err != nil || Rewritten(data) || len(data) == 0 { // empty: just being written
			continue
		}
		h.File.mu.Lock()
		h.original = data
		h.File.mu.Unlock()
		err = h.Rewrite(h.beside(server, search))
		h.log.Info("somebody else wrote the resolver's configuration: it is theirs with our server before it", "servers", h.Original().Servers, "err", err)
	}
}

// Restore writes the original back, unless somebody else has.
func (h *Host) Restore() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop != nil {
		close(h.stop)
		<-h.ended
		h.stop = nil
	}
	return h.File.Restore()
}
