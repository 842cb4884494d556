package split

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echo is a service of gRPC made by hand: every method takes and gives a stream of
// strings. It answers each with its name before it; "fail" ends it with an error
// and trailers, "wait" waits until the client gives up.
type echo struct {
	name string
	gone chan struct{}
}

func (e *echo) serve(_ any, s grpc.ServerStream) error {
	_ = s.SendHeader(metadata.Pairs("who", e.name))
	s.SetTrailer(metadata.Pairs("last", e.name))
	for {
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			e.hear()
			return err
		}
		switch m.Value {
		case "fail":
			return status.Error(codes.FailedPrecondition, "asked to, "+e.name)
		case "wait":
			<-s.Context().Done()
			e.hear()
			return s.Context().Err()
		}
		if err := s.SendMsg(wrapperspb.String(e.name + " " + m.Value)); err != nil {
			return err
		}
	}
}

// hear tells that the client has given up.
func (e *echo) hear() {
	select {
	case e.gone <- struct{}{}:
	default:
	}
}

func grpcServer(t *testing.T, e *echo) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
		{StreamName: "Talk", Handler: e.serve, ServerStreams: true, ClientStreams: true},
		{StreamName: "Other", Handler: e.serve, ServerStreams: true, ClientStreams: true},
	}}, e)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func talk(ctx context.Context, c *grpc.ClientConn, method, dev string) (grpc.ClientStream, error) {
	if dev != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-dev", dev)
	}
	return c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/"+method)
}

func say(s grpc.ClientStream, what string) (string, error) {
	if err := s.SendMsg(wrapperspb.String(what)); err != nil {
		return "", err
	}
	var m wrapperspb.StringValue
	err := s.RecvMsg(&m)
	return m.Value, err
}

// Calls of one connection go to app and handlers by their metadata and method, at
// once and both ways; headers, trailers, errors, cancellation and flow control are
// those of the far end.
func TestGRPC(t *testing.T) {
	app, alice := &echo{"app", make(chan struct{}, 10)}, &echo{"alice", make(chan struct{}, 10)}
	r := newRig(t, grpcServer(t, app))
	r.handler("alice", grpcServer(t, alice))
	r.hold(t, route("alice", "alice"), route("alice", "/test.Echo/Other"))
	c, err := grpc.NewClient(r.at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	open := map[string]grpc.ClientStream{}
	for i := range 40 { // all open at once
		dev, method, want := "", "Talk", "app"
		switch i % 3 {
		case 0:
			dev, want = "alice", "alice"
		case 1:
			method, want = "Other", "alice"
		}
		s, err := talk(ctx, c, method, dev)
		if err != nil {
			t.Fatal(err)
		}
		h, err := s.Header() // before anything was said
		if err != nil || len(h["who"]) != 1 || h["who"][0] != want {
			t.Fatalf("call %d: headers %v, %v", i, h, err)
		}
		open[fmt.Sprint(want, " ", i)] = s
	}
	for range 3 {
		for k, s := range open {
			_, i, _ := strings.Cut(k, " ")
			if got, err := say(s, i); err != nil || got != k {
				t.Fatalf("%s: %q, %v", k, got, err)
			}
		}
	}
	for k, s := range open {
		name, _, _ := strings.Cut(k, " ")
		_ = s.CloseSend()
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); !errors.Is(err, io.EOF) || len(s.Trailer()["last"]) != 1 || s.Trailer()["last"][0] != name {
			t.Fatalf("%s: end %v, trailers %v", k, err, s.Trailer())
		}
	}
	for _, dev := range []string{"", "alice"} { // answered by trailers only, which end the stream with the headers
		for i := range 100 {
			s, err := talk(ctx, c, "None", dev)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Unimplemented {
				t.Fatalf("call %d of no method, by %q: %v", i, dev, err)
			}
		}
	}
	for dev, e := range map[string]*echo{"": app, "alice": alice} {
		s, err := talk(ctx, c, "Talk", dev)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := say(s, "fail"); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "asked to, "+e.name {
			t.Errorf("error %v", err)
		}
		once, giveUp := context.WithCancel(ctx)
		if s, err = talk(once, c, "Talk", dev); err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(wrapperspb.String("wait")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Header(); err != nil {
			t.Fatal(err)
		}
		giveUp()
		select {
		case <-e.gone:
		case <-ctx.Done():
			t.Fatalf("%s does not hear of the cancellation", e.name)
		}
	}
}

// A handler that does not read holds up its own calls, and none of the app's on the
// same connection.
func TestStuckHandler(t *testing.T) {
	app, alice := &echo{"app", make(chan struct{}, 10)}, &echo{"alice", make(chan struct{}, 10)}
	r := newRig(t, grpcServer(t, app))
	r.handler("alice", grpcServer(t, alice))
	r.hold(t, route("alice", "alice"))
	c, err := grpc.NewClient(r.at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stuck, giveUp := context.WithCancel(ctx)
	defer giveUp()
	full, err := talk(stuck, c, "Talk", "alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := full.SendMsg(wrapperspb.String("wait")); err != nil {
		t.Fatal(err)
	}
	go func() { // until it waits for the handler's window
		for full.SendMsg(wrapperspb.String(strings.Repeat("x", 1<<20))) == nil {
		}
	}()
	s, err := talk(ctx, c, "Talk", "")
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("y", 1<<20)
	for range 20 {
		if got, err := say(s, big); err != nil || got != "app "+big {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}
