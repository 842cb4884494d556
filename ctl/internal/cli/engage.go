package cli

import (
	"context"

	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

func (a *App) replaceCommand() *usage.Command {
	return a.engageCommand(&usage.Command{
		Synopsis: "replace WORKLOAD [flags] --docker-run -- [docker run flags] IMAGE [args] | -- COMMAND",
		Short:    "Put a local container in the place of a workload's own.",
		Long: `WORKLOAD is a Deployment, StatefulSet or ReplicaSet, by its name or as kubectl has
it (deploy/web, sts/db). Its container is taken out of its pods; its ports,
environment and traffic go to the handler, which runs in the foreground. When the
handler ends, by itself, by Ctrl-C, ctl leave or ctl quit, the workload runs its own
container again. The exit code is the handler's. What stands behind -- is as for docker run; --rm is
implied, --detach is refused. The image is there before the cluster is touched.
With --docker-build it is built first, and the word IMAGE stands for it; with
--watch it is built again whenever the context changes, and the new handler takes
the old one's place while connections wait. Without
either, what stands behind -- is a command of this machine: it has the container's
environment and, below $BERTH_ROOT, its volumes (on Linux, with FUSE), and the traffic
comes to it at this machine's address. The traffic
goes to the handler once it listens (--wait); the workload's own pods answer
until then.`,
		Examples: []string{
			"ctl replace frontend --docker-run -- frontend:dev",
			"ctl replace frontend --container app --port 3000:http --docker-run -- -it -e DEBUG=1 frontend:dev",
			"ctl replace statefulset/db --docker-run -- -v $PWD:/src db:dev",
			"ctl replace frontend --docker-build . --docker-build-opt tag=frontend:dev -- -it IMAGE",
			"ctl replace frontend --docker-build . --watch",
			"ctl replace frontend --port 3000:http -- npm start",
		},
	}, lease.Replace)
}

func (a *App) interceptCommand() *usage.Command {
	return a.engageCommand(&usage.Command{
		Synopsis: "intercept WORKLOAD --port PORT[:ID] [flags] [--docker-run -- [docker run flags] IMAGE [args] | -- COMMAND]",
		Short:    "Bring the traffic of one service port to a local container.",
		Long: `What is sent to the service's port comes to the handler, from all replicas; other
ports and the workload's own containers are not touched. When the handler ends, by
itself, by Ctrl-C, ctl leave or ctl quit, the traffic returns at once. What stands
behind -- is as for ctl replace. Without a handler the engagement is held until
Ctrl-C: the traffic comes to PORT at 127.0.0.1 in the connection's network.

With --http-header or --http-path-… only those requests come to the handler that
match all of it, each for itself, by HTTP/1.1, HTTP/2 without TLS and gRPC; all
else stays with the workload, what is not HTTP too. So several of you can
intercept one port at once: with different filters, and one without any, who gets
the rest. A request that several filters match goes to the one with more headers,
then with the more specific path, then to the older one. Connections that are open
already stay where they are. Filters can be read by who may read leases in the
namespace: do not filter by a password or token.`,
		Examples: []string{
			"ctl intercept frontend --port 3000:http --docker-run -- -it frontend:dev",
			"ctl intercept frontend --port 3000:http --http-header x-dev=alice --docker-run -- frontend:dev",
			"ctl intercept frontend --port 3000:http --http-header 'cookie=.*dev=alice.*' --http-path-prefix /api -- npm start",
			"ctl intercept frontend --port 8080 --docker-build . -- IMAGE",
			"ctl intercept frontend --port 8080:80 --service frontend-internal --to-pod 6379",
		},
	}, lease.Intercept)
}

func (a *App) wiretapCommand() *usage.Command {
	return a.engageCommand(&usage.Command{
		Synopsis: "wiretap WORKLOAD --port PORT[:ID] [flags] [--docker-run -- [docker run flags] IMAGE [args] | -- COMMAND]",
		Short:    "Give a local container copies of what is sent to a service port.",
		Long: `Of each new TCP connection to the service's port, what the client says is copied to
the handler, whose answers are dropped; the workload answers, or who intercepts it.
Neither it nor its clients wait for the handler: what one that is slow, or not
there, does not take within some 128 KiB of a connection is dropped, with the rest
of that connection, and counted (ctl status). Any number at once, beside an
intercept too. The handler has the container's environment, and its volumes
read-only. What stands behind -- is as for ctl replace.

With --http-header or --http-path-… only those requests are copied that match all
of it, each for itself, by HTTP/1.1, HTTP/2 without TLS and gRPC; of what is not
HTTP, TLS too, nothing. The handler is asked each of them anew, by the same
version of HTTP; what it does not take within some 128 KiB of a request, or when
128 of them are with it, is dropped and counted. Filters can be read by who may
read leases in the namespace: do not filter by a password or token.`,
		Examples: []string{
			"ctl wiretap frontend --port 3000:http --docker-run -- frontend:dev",
			"ctl wiretap frontend --port 3000:http --http-header x-dev=alice --http-path-prefix /api --docker-run -- frontend:dev",
			"ctl wiretap frontend --port 3000:http -- nc -lk 3000",
		},
	}, lease.Wiretap)
}

func (a *App) ingestCommand() *usage.Command {
	return a.engageCommand(&usage.Command{
		Synopsis: "ingest WORKLOAD [flags] [--docker-run -- [docker run flags] IMAGE [args] | -- COMMAND]",
		Short:    "Give a local container what a workload's container has, without its traffic.",
		Long: `The handler has the container's environment and its volumes, read-only; the
workload goes on as it is. Any number at once. What stands behind -- is as for ctl
replace. Without a handler the engagement is held until Ctrl-C; with a command
behind -- instead of --docker-run it lasts as long as that.`,
		Examples: []string{
			"ctl ingest frontend --docker-run -- -it frontend:dev sh",
			"ctl ingest frontend --container app --docker-build . -- IMAGE",
			"ctl ingest frontend -- npm test",
			"ctl ingest frontend --mount /tmp/frontend -- ls /tmp/frontend/etc",
			"ctl ingest frontend --env-json - -- true > env.json",
		},
	}, lease.Ingest)
}

// engageCommand completes the command of a kind of engagement.
func (a *App) engageCommand(c *usage.Command, kind lease.Kind) *usage.Command {
	f := &engageFlags{kind: kind}
	c.Name, c.Flags = string(kind), a.flags(string(kind))
	f.register(c.Flags)
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := f.check(l, a.print.JSON); err != nil {
			return err
		}
		return a.engage(ctx, l.Words[0], f, l.After)
	})
	return c
}
