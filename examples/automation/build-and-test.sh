#!/bin/sh
# Builds a context, docks the image in the place of a workload, runs a test
# against it, and undoes it all.
#
#	build-and-test.sh WORKLOAD CONTEXT TEST [ARGS…]
#
# The exit code is the test's; 100 if there was no image, 101 if the engagement
# did not become active, with the reason on stderr either way. Needs a connection
# (ctl connect --docker) and jq.
set -u
workload=$1 context=$2
shift 2

image=$(ctl build "$context") || exit 100

facts=$(mktemp)
trap 'rm -f "$facts"' EXIT
# stdout has the facts, one on a line; the handler's output goes to stderr.
# --wait-limit: a handler that never listens is a failure here.
ctl replace "$workload" --output json --wait-limit 60s --docker-run -- "$image" >"$facts" &
replace=$!

# Every fact has the engagement's id as its subject.
id=
while [ -z "$id" ]; do
	kill -0 $replace 2>/dev/null || exit 101
	id=$(jq -r 'select(.type == "dev.berth.engagement.connector.requested.v1").subject' <"$facts" 2>/dev/null | head -n 1)
	sleep 0.1
done
# Exit code 0: it came true. 1: the engagement ended without.
if ! ctl events --engagement "$id" --until active >/dev/null; then
	wait $replace
	exit 101
fi

"$@"
code=$?
ctl leave "$id" >/dev/null
wait $replace
exit $code
