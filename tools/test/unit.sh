#!/usr/bin/env bash
# Tests of the modules given. Tests of real things (Docker, namespaces, FUSE)
# run where those are, and say so by name where they are not.
set -euo pipefail
fail=0
for m in "$@"; do
	(cd "$m" && go test -count=1 -timeout 10m ./...) || fail=1
done
exit $fail
