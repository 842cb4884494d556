#!/usr/bin/env bash
# The end-to-end tests, on real Docker and the cluster of $KUBECONFIG.
set -euo pipefail
export BERTH_CTL="$PWD/bin/ctl" BERTH_ROOT="$PWD"
go -C e2e test -count=1 -timeout 30m -v ${RUN:+-run "$RUN"} .
