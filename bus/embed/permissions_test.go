package embed_test

import (
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/embed"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// rights is one line of the table: what must pass and what must be refused.
type rights struct {
	service    subject.Service
	connection string
	pub, noPub []string
	sub, noSub []string
}

func table() []rights {
	const v1 = subject.Root
	return []rights{{
		service: subject.Connector,
		pub:     []string{v1 + ".cmd.vif.tunnel-open.c1", v1 + ".cmd.runner.daemon-start", v1 + ".evt.engagement.e1.connector.active", v1 + ".live.ctl.x", "$JS.API.STREAM.CREATE.X"},
		noPub:   []string{"_INBOX_ctl.a.b", "anything", "$SYS.REQ.SERVER.PING"},
		sub:     []string{v1 + ".cmd.connector.*", v1 + ".evt.>", "_INBOX_me.>", "$SRV.PING.connector.abc"},
		noSub:   []string{"_INBOX_ctl.>", "_INBOX.>", ">", "*.>", "$SYS.>", "$JS.API.>"},
	}, {
		service: subject.Runner,
		pub:     []string{v1 + ".evt.engagement.e1.runner.handler-exited", v1 + ".evt.connection.c1.runner.daemon-started", v1 + ".out.engagement.e1.runner.stdout", v1 + ".cmd.connector.state-get"},
		noPub:   []string{v1 + ".evt.engagement.e1.connector.ended", v1 + ".cmd.runner.daemon-start", v1 + ".cmd.connector.connection-open", v1 + ".cmd.vif.engage.c1", v1 + ".out.engagement.e1.builder.stdout", v1 + ".live.ctl.x", "_INBOX_ctl.a", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.x", "$SRV.PING"},
		sub:     []string{v1 + ".cmd.runner.handler-create", v1 + ".live.runner.r1", "_INBOX_me.abc.*", "$SRV.PING", "$SRV.INFO.runner", "$SRV.STATS.runner.id1"},
		noSub:   []string{v1 + ".cmd.>", v1 + ".cmd.vif.engage.c1", v1 + ".evt.>", v1 + ".out.>", v1 + ".live.ctl.x", "_INBOX_connector.>", "_INBOX.>", "$SRV.PING.vif", "$SRV.>", ">"},
	}, {
		service: subject.VIF, connection: "c1",
		pub:   []string{v1 + ".evt.connection.c1.vif.tunnel-opened"},
		noPub: []string{v1 + ".evt.connection.c2.vif.tunnel-opened", v1 + ".evt.engagement.e1.vif.x", v1 + ".evt.connection.c1.connector.connected", v1 + ".cmd.vif.engage.c1", v1 + ".cmd.runner.daemon-stop", v1 + ".out.engagement.e1.vif.stdout", v1 + ".live.ctl.x", "$JS.API.STREAM.INFO.EVENTS", "$JS.ACK.EVENTS.c.1.1.1.1.1"},
		sub:   []string{v1 + ".cmd.vif.*.c1", v1 + ".cmd.vif.tunnel-open.c1", v1 + ".live.vif.c1", "_INBOX_me.>", "$SRV.PING.vif"},
		noSub: []string{v1 + ".cmd.vif.tunnel-open.c2", v1 + ".cmd.vif.>", v1 + ".cmd.runner.*", v1 + ".evt.connection.c1.>", v1 + ".live.vif.c2", "_INBOX_connector.>"},
	}, {
		service: subject.Builder,
		pub:     []string{v1 + ".evt.build.b1.builder.finished", v1 + ".evt.engagement.e1.builder.built", v1 + ".out.engagement.e1.builder.stderr", v1 + ".out.build.b1.builder.stdout"},
		noPub:   []string{v1 + ".evt.engagement.e1.runner.handler-exited", v1 + ".out.engagement.e1.runner.stdout", v1 + ".cmd.runner.handler-create", "$JS.API.STREAM.DELETE.EVENTS"},
		sub:     []string{v1 + ".cmd.builder.build", v1 + ".live.builder.b"},
		noSub:   []string{v1 + ".cmd.runner.handler-create", v1 + ".evt.>", v1 + ".live.runner.r1"},
	}, {
		service: subject.Telemount,
		pub:     []string{v1 + ".evt.engagement.e1.telemount.mounted"},
		noPub:   []string{v1 + ".evt.engagement.e1.runner.x", v1 + ".out.engagement.e1.telemount.stdout", v1 + ".cmd.connector.state-get"},
		sub:     []string{v1 + ".cmd.telemount.mount", v1 + ".live.telemount.t"},
		noSub:   []string{v1 + ".cmd.vif.engage.c1", v1 + ".out.>"},
	}, {
		service: subject.Ctl,
		pub:     []string{v1 + ".cmd.connector.connection-open", v1 + ".cmd.runner.handler-start", v1 + ".cmd.runner.container-create", v1 + ".cmd.builder.build-start", v1 + ".cmd.builder.build-cancel", v1 + ".live.connector.x", "$SRV.PING", "$JS.API.CONSUMER.CREATE.EVENTS.n_1", "$JS.API.CONSUMER.CREATE.EVENTS.n_1.berth.v1.evt.>", "$JS.API.CONSUMER.MSG.NEXT.OUTPUT.n_1", "$JS.API.CONSUMER.DELETE.EVENTS.n_1", "$JS.API.STREAM.INFO.EVENTS", "$JS.ACK.EVENTS.n.1.1.1.1.1", "$JS.FC.EVENTS.n.1"},
		noPub:   []string{v1 + ".cmd.runner.handler-create", v1 + ".cmd.runner.daemon-stop", v1 + ".cmd.vif.engage.c1", v1 + ".evt.engagement.e1.connector.ended", v1 + ".evt.engagement.e1.ctl.x", v1 + ".out.engagement.e1.runner.stdout", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.DELETE.OUTPUT", "$JS.API.STREAM.UPDATE.EVENTS", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.MSG.DELETE.EVENTS", "$JS.API.CONSUMER.CREATE.OTHER.n", "_INBOX_connector.x"},
		sub:     []string{v1 + ".live.ctl.x", v1 + ".evt.>", v1 + ".out.>", "_INBOX_me.>"},
		noSub:   []string{v1 + ".cmd.>", v1 + ".cmd.connector.connection-open", v1 + ".live.runner.x", "_INBOX_connector.>", "$SRV.PING", ">"},
	}}
}

func TestPermissions(t *testing.T) {
	for _, r := range table() {
		t.Run(string(r.service), func(t *testing.T) {
			seed, id := identity(t, "me", r.service, r.connection)
			s := start(t, id)
			kp, err := nkeys.FromSeed([]byte(seed))
			if err != nil {
				t.Fatal(err)
			}
			// refused does f on a connection of its own. The server answers in
			// order, so after Flush its refusal is there or does not come.
			refused := func(f func(*nats.Conn) error) bool {
				t.Helper()
				nc, err := nats.Connect(s.URL(), nats.Nkey(id.PublicKey, kp.Sign), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				if err := f(nc); err != nil {
					t.Fatal(err)
				}
				if err := nc.Flush(); err != nil {
					t.Fatal(err)
				}
				err = nc.LastError()
				return err != nil && strings.Contains(strings.ToLower(err.Error()), "permissions violation")
			}
			check := func(what string, subjects []string, want bool, f func(*nats.Conn, string) error) {
				t.Helper()
				for _, subj := range subjects {
					if got := refused(func(nc *nats.Conn) error { return f(nc, subj) }); got != want {
						t.Errorf("%s %s: refused %v, want %v", what, subj, got, want)
					}
				}
			}
			publish := func(nc *nats.Conn, subj string) error { return nc.Publish(subj, nil) }
			subscribe := func(nc *nats.Conn, subj string) error { _, err := nc.SubscribeSync(subj); return err }
			queue := func(nc *nats.Conn, subj string) error { _, err := nc.QueueSubscribeSync(subj, "q"); return err }
			check("publish", r.pub, false, publish)
			check("publish", r.noPub, true, publish)
			check("subscribe", r.sub, false, subscribe)
			check("subscribe", r.noSub, true, subscribe)
			check("queue-subscribe", r.noSub, true, queue)
		})
	}
}

func TestPermissionsOfNobody(t *testing.T) {
	for _, id := range []bus.Identity{{Service: "nobody"}, {Service: subject.VIF}, {Service: subject.VIF, Connection: "a.>"}} {
		if _, err := embed.Permissions(id.Service, "x", id.Connection); err == nil {
			t.Errorf("%+v has permissions", id)
		}
	}
}
