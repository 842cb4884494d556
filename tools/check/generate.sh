#!/usr/bin/env bash
# Makes the generated files anew: every package with a go:generate line.
set -euo pipefail
for f in $(git grep -l '^//go:generate ' -- '*.go'); do
	(cd "$(dirname "$f")" && go generate "./$(basename "$f")")
done
