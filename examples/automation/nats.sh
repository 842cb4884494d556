#!/bin/sh
# Docks an image in the place of a workload, runs a test against it and undoes it
# all, without ctl: with the plain nats command line, straight on the bus.
#
#	nats.sh WORKLOAD IMAGE TEST [ARGS…]
#
# The exit code is the test's; 100 if the engagement was refused, 101 if it did not
# become active, with the reason on stderr either way. Needs a connection (ctl
# connect --docker), nats (github.com/nats-io/natscli), docker and jq.
set -u
workload=$1 image=$2
shift 2

# Who may use the Docker Engine may use the bus: ctl's key lies in connector's container.
key=$(mktemp)
trap 'rm -f "$key"' EXIT
docker cp berth-connector:/etc/berth/ctl.json - | tar -xO | jq -r .seed >"$key" || exit 100
server=$(docker port berth-connector 4222/tcp | head -n 1)
bus() { nats -s "$server" --nkey "$key" --inbox-prefix _INBOX_ctl "$@"; }

connection=$(bus req --raw berth.v1.cmd.connector.state-get '{}' | jq -r '.connections[0].id // empty')
[ -n "$connection" ] || { echo "nothing is connected" >&2; exit 100; }

# The id is ours. No holder is named, so the engagement lives until it is closed.
id=e$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
reply=$(bus req --raw --timeout 15s berth.v1.cmd.connector.engagement-open "$(jq -cn \
	--arg id "$id" --arg connection "$connection" --arg workload "$workload" --arg image "$image" \
	'{id: $id, connection: $connection, kind: "replace", workload: $workload, handler: {config: {Image: $image}, hostConfig: {}}, wait: "listening", waitMillis: 60000}')")
[ "$(printf %s "$reply" | jq -r '.id // empty')" = "$id" ] || { printf '%s\n' "$reply" >&2; exit 100; }

# reached FACT: whether it has been stated; the stream keeps what was stated before one looks.
reached() {
	bus sub --all --raw --terminate-at-end "berth.v1.evt.engagement.$id.connector.*" 2>/dev/null |
		jq -e -s --arg fact "$1" 'any(.[]; .type == "dev.berth.engagement.connector.\($fact).v1")' >/dev/null
}
over() { reached ended || reached failed; }

until reached active; do
	if over; then
		bus sub --all --raw --terminate-at-end "berth.v1.evt.engagement.$id.connector.*" 2>/dev/null |
			jq -r 'select(.data.error or .data.cause) | .data.error.message // .data.cause' >&2
		exit 101
	fi
	sleep 0.1
done

"$@"
code=$?
bus req --raw berth.v1.cmd.connector.engagement-close "{\"id\":\"$id\",\"cause\":\"tested\"}" >/dev/null
until over; do sleep 0.1; done
exit $code
