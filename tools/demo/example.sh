#!/usr/bin/env bash
# Applies or deletes the example in the cluster of $KUBECONFIG, and waits.
set -euo pipefail
mkdir -p bin
go -C e2e build -o "$PWD/bin/e2e-cluster" ./cmd/cluster
bin/e2e-cluster "$1" examples/manifests/example.yaml
