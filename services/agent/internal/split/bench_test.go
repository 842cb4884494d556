package split

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// What a filter costs a request: to the app as a whole connection (no filter is
// there), and looked at one by one, to the app and to the other side of a tunnel; and
// what a wiretap's filter costs it that does not match it, or does.
func BenchmarkRequest(b *testing.B) {
	for _, way := range []string{"direct", "whole to app", "filtered to app", "whole to handler", "filtered to handler", "sifted", "copied"} {
		for name, client := range map[string]func() *http.Client{"HTTP1": client1, "HTTP2": client2} {
			b.Run(strings.ReplaceAll(way, " ", "-")+"/"+name, func(b *testing.B) {
				app := server(b, named("app"))
				r := newRig(b, app)
				r.handler("alice", app)
				at, dev := r.at, ""
				switch way {
				case "direct":
					at = app
				case "filtered to app":
					r.hold(b, route("alice", "alice"))
				case "sifted":
					r.tap(b, nil, route("alice", "alice"))
				case "copied":
					r.tap(b, nil, route("alice", "alice"))
					dev = "alice"
				case "whole to handler":
					r.hold(b, route("alice"))
				case "filtered to handler":
					r.hold(b, route("alice", "alice"))
					dev = "alice"
				}
				c := client()
				for b.Loop() {
					req, err := http.NewRequest("GET", "http://"+at+"/", nil)
					if err != nil {
						b.Fatal(err)
					}
					req.Header.Set("X-Dev", dev)
					res, err := c.Do(req)
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			})
		}
	}
}
