// Package tunnel is the one protocol across the cluster boundary. It carries
// the bytes of flows between vif on the developer's machine, the manager in the
// cluster, and agents in pods; never events or state, which have the bus.
//
// # Layers
//
//	Stream, Relay, Call      flows, joined to sockets; calls
//	Session                  many streams on one connection (this mux)
//	Dial, Serve              inner TLS 1.3 with pinned keys; Hello, Welcome
//	Upgrade, RequestUpgrade  HTTP/1.1 101, then raw bytes
//	apidial, or plain TCP    a way to the manager
//
// The inner TLS is needed even on the API server's TLS: that one ends at the
// API server, which removes what proves the caller.
//
// # An example
//
//	// in vif
//	session, welcome, err := tunnel.Dial(ctx, conn, identity, pin, tunnel.Hello{Role: "vif"}, tunnel.Config{})
//	stream, err := session.Open(ctx, tunnel.Header{Kind: tunnel.KindTCP, Dst: dst, Src: src})
//	if err != nil {
//		// tunnel.CodeOf(err) == tunnel.CodeRefused: answer the SYN with RST
//	}
//	sent, received, err := tunnel.Relay(tcp, stream)
//
//	// in the manager
//	request, err := session.Accept(ctx)
//	dialCtx, release := request.Context(ctx) // ends when the opener gives up
//	conn, err := dialer.DialContext(dialCtx, "tcp", request.Header.Dst.String())
//	release()
//	if err != nil {
//		request.Refuse(tunnel.CodeOf(err), err.Error())
//		return
//	}
//	stream, err := request.Accept()
//	tunnel.Relay(stream, conn.(*net.TCPConn))
//
// # What it promises
//
//   - Open returns once the far side has accepted, so a closed port is refused
//     and not accepted and dropped.
//   - FIN and RST of each direction arrive as such, after the bytes before them
//     in the case of FIN. A stream that was cut short never looks complete.
//   - A stream that nobody reads holds up no other, and holds no more memory
//     than a small multiple of its window.
//   - Streams arrive at Accept in the order in which they were opened; of two that
//     are opened at once in that of Begin.
//   - Datagrams keep their boundaries. They are dropped, never held back.
//   - Anything malformed ends the session with an error that matches
//     ErrProtocol.
//
// # The wire
//
// Each end begins with 7 bytes "BERTHMX" and one of version. Frames follow: 8
// bytes of header (type 1, length 3, stream 4; big endian) and at most 65528
// of payload. The client opens odd streams, the server even ones, each in
// rising order and each number once.
//
//	OPEN    window, Header, early data  ->
//	                                    <-  ACCEPT window, or REFUSE code message
//	DATA    bytes, perhaps with FIN     <->  WINDOW more credit
//	PACKET  one datagram, no credit     <->
//	RESET   code: both directions dead  <->
//	STOP    code: I will not read more  <->  answered by FIN
//	PING, PONG, GOAWAY                  <->  on stream 0
//
// A stream is forgotten when both directions have ended, and frames that still
// arrive for it are ignored.
//
// # Concurrency
//
// A session has three goroutines: a reader, a writer, a keep-alive. The reader
// waits for nothing but the connection. A small piece of what it reads goes on into
// the other end of a Relay by its own hand, if that end takes it at once and what came
// before is through; all else is queued for the relay. A small write on an otherwise idle
// session goes out in its caller's goroutine, if the socket has room for it;
// all else is queued for the writer. Everything may be called concurrently. The
// lock order is writer.mu, then Session.mu; Stream.mu is held with neither, but over
// a write without waiting into the other end of a Relay.
package tunnel
