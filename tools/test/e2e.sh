#!/usr/bin/env bash
# The end-to-end tests, on real Docker and the cluster of $KUBECONFIG.
set -euo pipefail
export BERTH_CTL="$PWD/bin/ctl" BERTH_ROOT="$PWD"
# The plain nats command line, which one of the examples for automation uses.
[ "$(bin/tools/nats --version 2>/dev/null)" = v0.5.1 ] || GOBIN="$PWD/bin/tools" go install github.com/nats-io/natscli/nats@v0.5.1
# gotestsum(1) says what failed once more at the end, with its output: half an hour
# of lines is too much to look through.
go -C tools build -o "$PWD/bin/tools/gotestsum" gotest.tools/gotestsum
cd e2e
../bin/tools/gotestsum --format standard-verbose -- -count=1 -timeout 2h ${RUN:+-run "$RUN"} .
