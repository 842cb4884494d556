package embed

import (
	"fmt"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats-server/v2/server"
)

// Permissions is what an identity of a service may publish and subscribe to.
// The table, which bus/README.md repeats for people:
//
//	service    publishes                                     subscribes to
//	connector  berth.v1.>, $JS.API.>, $SRV.>                 berth.v1.>
//	runner     evt.*.*.runner.*, out.engagement.*.runner.*,  cmd.runner.>, live.runner.>
//	           cmd.connector.state-get
//	builder    evt.*.*.builder.*, out.*.*.builder.*          cmd.builder.>, live.builder.>
//	telemount  evt.*.*.telemount.*                           cmd.telemount.>, live.telemount.>
//	vif of c   evt.connection.c.vif.*                        cmd.vif.*.c, live.vif.c
//	ctl        cmd.connector.*, cmd.runner.handler-start,    live.ctl.>, evt.>, out.>
//	           cmd.runner.container-create, live.>, $SRV.>,
//	           cmd.builder.build-start, cmd.builder.build-cancel,
//	           reading EVENTS and OUTPUT
//
// Everyone subscribes to the own inbox and to no other; who serves also to the
// discovery subjects of its service, and may answer each request once.
//
// Who may create a consumer chooses where its messages go, and who may ask
// chooses where the answer goes. So ctl, which may do both, is trusted; no
// other service but connector has either.
func Permissions(service subject.Service, identity, connection string) (*server.Permissions, error) {
	const v1 = subject.Root
	var pub, sub []string
	s := string(service)
	serves := true
	switch service {
	case subject.Connector:
		pub = []string{v1 + ".>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$SRV.>"}
		sub = []string{v1 + ".>"}
	case subject.Runner, subject.Builder:
		pub = []string{v1 + ".evt.*.*." + s + ".*", v1 + ".out.engagement.*." + s + ".*"}
		sub = []string{v1 + ".cmd." + s + ".>", v1 + ".live." + s + ".>"}
		if service == subject.Builder {
			pub = append(pub, v1+".out.build.*."+s+".*")
		}
		if service == subject.Runner {
			pub = append(pub, subject.Command(subject.Connector, command.StateGet.Verb))
		}
	case subject.Telemount:
		pub = []string{v1 + ".evt.*.*." + s + ".*"}
		sub = []string{v1 + ".cmd." + s + ".>", v1 + ".live." + s + ".>"}
	case subject.VIF:
		if !subject.Valid(connection) {
			return nil, fmt.Errorf("permissions of %s: connection %q is not a token", service, connection)
		}
		pub = []string{v1 + ".evt.connection." + connection + "." + s + ".*"}
		sub = []string{v1 + ".cmd." + s + ".*." + connection, subject.Live(service, connection)}
	case subject.Ctl:
		serves = false
		pub = append([]string{
			v1 + ".cmd." + string(subject.Connector) + ".*",
			subject.Command(subject.Runner, command.HandlerStart.Verb),
			subject.Command(subject.Runner, command.ContainerCreate.Verb),
			subject.Command(subject.Runner, command.VolumesEnsure.Verb),
			subject.Command(subject.Builder, command.BuildStart.Verb),
			subject.Command(subject.Builder, command.BuildCancel.Verb),
			subject.Command(subject.VIF, command.VIFFigures.Verb) + ".*",
			v1 + ".live.>",
			"$SRV.>",
		}, reading(bus.EventsStream, bus.OutputStream)...)
		sub = []string{v1 + ".live." + s + ".>", subject.AllFacts, subject.AllOutput}
	default:
		return nil, fmt.Errorf("permissions of %q: no such service", service)
	}
	sub = append(sub, bus.InboxPrefix(identity)+".>")
	p := &server.Permissions{
		Publish: &server.SubjectPermission{Allow: pub},
		// Presence is answered too, so ctl needs this as well.
		Response: &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
	}
	if serves {
		// Spelt out: the server lets "$SRV.>" pass where "$SRV.*" is allowed.
		for _, q := range []string{"$SRV.PING", "$SRV.INFO", "$SRV.STATS"} {
			sub = append(sub, q, q+"."+s, q+"."+s+".*")
		}
	}
	p.Subscribe = &server.SubjectPermission{Allow: sub}
	return p, nil
}

// reading is the part of the JetStream API that reads streams: through
// consumers of the reader's own, which it may create, ask and delete, and by
// looking. No stream is created, changed, purged or deleted with it.
func reading(streams ...string) []string {
	api := []string{"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"}
	for _, s := range streams {
		api = append(api,
			"$JS.API.STREAM.INFO."+s,
			"$JS.API.STREAM.MSG.GET."+s,
			"$JS.API.DIRECT.GET."+s, "$JS.API.DIRECT.GET."+s+".>",
			"$JS.API.CONSUMER.CREATE."+s, // unnamed, by older clients
			"$JS.API.CONSUMER.CREATE."+s+".>",
			"$JS.API.CONSUMER.DURABLE.CREATE."+s+".*",
			"$JS.API.CONSUMER.INFO."+s+".*",
			"$JS.API.CONSUMER.MSG.NEXT."+s+".*",
			"$JS.API.CONSUMER.DELETE."+s+".*",
			"$JS.API.CONSUMER.NAMES."+s,
			"$JS.API.CONSUMER.LIST."+s,
			"$JS.ACK."+s+".>", "$JS.ACK.*.*."+s+".>",
			"$JS.FC."+s+".>", "$JS.FC.*.*."+s+".>",
		)
	}
	return api
}
