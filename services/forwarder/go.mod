module berth.dev/services/forwarder

go 1.26.0

require (
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/sync v0.24.0
)
