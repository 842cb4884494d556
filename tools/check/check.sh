#!/usr/bin/env bash
# The checks that CI runs before the tests, over the modules given: formatting,
# vet, staticcheck, tidiness, generated files, dependency rules.
set -euo pipefail
fail=0
say() { printf '%s\n' "$*" >&2; }

out=$(gofmt -l "$@")
[ -z "$out" ] || { say "gofmt: not formatted:" $out; fail=1; }

mkdir -p bin/tools
go -C tools build -o "$PWD/bin/tools/staticcheck" honnef.co/go/tools/cmd/staticcheck
for m in "$@"; do
	say "check: $m"
	(cd "$m" && go vet ./... && "$OLDPWD/bin/tools/staticcheck" ./...) || fail=1
	(cd "$m" && go mod tidy -diff >/dev/null) || { say "go.mod of $m is not tidy: make tidy"; fail=1; }
done

# Who runs Docker Desktop has ctl on another system than the engine's.
for os in darwin/arm64 windows/amd64; do
	say "check: ctl for $os"
	(cd ctl && GOOS=${os%/*} GOARCH=${os#*/} go build ./...) || fail=1
done

tools/check/generate.sh
out=$(git status --porcelain -- $(git ls-files '*/schema/*.json' 'deploy/chart/*' 'docs/reference/*') 2>/dev/null || true)
[ -z "${CI:-}" ] || [ -z "$out" ] || { say "generated files are stale: make tidy"; say "$out"; fail=1; }

(cd tools && go test ./...) || fail=1
[ $fail = 0 ] || { say "check: failed"; exit 1; }
say "check: ok"
