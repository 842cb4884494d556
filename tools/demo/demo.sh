#!/usr/bin/env bash
# The demo: a container of examples/images/frontend-v2 docked in the place of
# frontend-v1's own, shown by a request made inside the cluster before, during
# and after. Undoes all that it made, on every kind of exit; its report stays in
# .cache/demo/report.txt.
set -euo pipefail
export PATH=$PWD/bin:$PATH # what is shown is what one would type
ctl=ctl
tool=$PWD/bin/e2e-cluster
report=$PWD/.cache/demo/report.txt
mkdir -p "$(dirname "$report")" bin
: >"$report"
started=$SECONDS

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; printf '\n%s\n' "$*" >>"$report"; }
run() { printf '$ %s\n' "$*" | tee -a "$report"; "$@" 2>&1 | tee -a "$report"; }
fail() { printf 'demo: %s\n' "$*" | tee -a "$report" >&2; exit 1; }
# first URL: the first line of what the request is answered with, made inside the cluster
first() { "$tool" get http://frontend-v1 | head -n 1; }
# until_first WANT: until the service's answer starts so, by probing, for a minute
until_first() {
	local end=$((SECONDS + 60)) got=
	while [ $SECONDS -lt $end ]; do
		got=$(first 2>/dev/null || true)
		[ "$got" = "$1" ] && return 0
	done
	fail "wanted the service to answer '$1', got '$got'"
}

go -C e2e build -o "$tool" ./cmd/cluster

own_cluster=
if [ -z "${KUBECONFIG:-}" ]; then
	export KUBECONFIG=$PWD/.cache/devcluster/kubeconfig
	[ "$(docker inspect -f '{{.State.Running}}' berth-devcluster 2>/dev/null)" = true ] || own_cluster=1
	bold "A cluster: the embedded one, in the container berth-devcluster"
	make cluster
	bin/devcluster load frontend-v1:latest backend:latest
else
	bold "A cluster: the one of KUBECONFIG"
fi

installed=
handler=
undo() {
	local code=$?
	trap - EXIT INT TERM
	[ -z "$handler" ] || kill -INT "$handler" 2>/dev/null || true
	"$ctl" quit --all >/dev/null 2>&1 || true
	[ -z "$installed" ] || "$ctl" uninstall >/dev/null 2>&1 || true
	"$ctl" quit --all >/dev/null 2>&1 || true
	"$tool" delete examples/manifests/example.yaml >/dev/null 2>&1 || true
	[ -z "$own_cluster" ] || bin/devcluster down --kubeconfig "$KUBECONFIG" >/dev/null 2>&1 || true
	exit $code
}
trap undo EXIT
trap 'exit 130' INT TERM

bold "The example: frontend-v1, which calls a backend"
"$tool" apply examples/manifests/example.yaml
bold "Berth's side of the cluster"
"$tool" namespace berth 2>/dev/null || installed=1
[ -z "$installed" ] || run "$ctl" install

bold "Before: the cluster's own frontend answers"
"$tool" get http://frontend-v1 | tee -a "$report"
[ "$(first)" = "frontend v1" ] || fail "expected frontend v1"

bold "Connect"
run "$ctl" connect --docker
run "$ctl" curl -sS http://frontend-v1

bold "Replace: a local container of the image frontend-v2 takes the place of the workload's"
printf '$ ctl replace frontend-v1 --docker-run -- frontend-v2\n' | tee -a "$report"
"$ctl" replace frontend-v1 --docker-run -- frontend-v2 > >(tee -a "$report") 2>&1 &
handler=$!
until_first "frontend v2"
bold "During: the same request, made inside the cluster, arrives in the local container"
answer=$("$tool" get http://frontend-v1)
printf '%s\n' "$answer" | tee -a "$report"
grep -q '^backend: hello from the backend in the cluster' <<<"$answer" || fail "v2 did not reach the backend by its name"
grep -q "^GREETING=hello from the cluster's config map" <<<"$answer" || fail "v2 lacks the remote environment"
run "$ctl" status

bold "Leave: the workload runs its own container again"
run "$ctl" leave frontend-v1
wait "$handler" || true
handler=
until_first "frontend v1"
"$tool" get http://frontend-v1 | tee -a "$report"

bold "Build and replace: the same, with the image built on the way"
printf '$ cd examples; ctl replace frontend-v1 --docker-build images/frontend-v2 --docker-build-opt tag=mytag -- IMAGE\n' | tee -a "$report"
(cd examples && exec "$ctl" replace frontend-v1 --docker-build images/frontend-v2 --docker-build-opt tag=mytag -- IMAGE) > >(tee -a "$report") 2>&1 &
handler=$!
until_first "frontend v2"
"$tool" get http://frontend-v1 | tee -a "$report"
run "$ctl" leave frontend-v1
wait "$handler" || true
handler=
docker rmi -f mytag >/dev/null 2>&1 || true
until_first "frontend v1"

bold "Quit"
run "$ctl" quit --all
[ -z "$installed" ] || { run "$ctl" uninstall; installed=; "$ctl" quit --all >/dev/null 2>&1 || true; }
left=$(docker ps -aq --filter label=berth.dev/workspace=default; docker network ls -q --filter label=berth.dev/workspace=default; docker volume ls -q --filter label=berth.dev/workspace=default; docker plugin ls --format '{{.Name}}' | grep '^telemount:' || true)
[ -z "$left" ] || fail "left behind: $left"
bold "Done in $((SECONDS - started)) s. Report: .cache/demo/report.txt"
