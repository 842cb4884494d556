#!/usr/bin/env bash
# The end-to-end tests, on real Docker and the cluster of $KUBECONFIG.
set -euo pipefail
export BERTH_CTL="$PWD/bin/ctl" BERTH_ROOT="$PWD"
# The plain nats command line, which one of the examples for automation uses.
[ "$(bin/tools/nats --version 2>/dev/null)" = v0.5.1 ] || GOBIN="$PWD/bin/tools" go install github.com/nats-io/natscli/nats@v0.5.1
go -C e2e test -count=1 -timeout 30m -v ${RUN:+-run "$RUN"} .
