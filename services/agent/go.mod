module berth.dev/services/agent

go 1.26.0

require (
	berth.dev/files v0.0.0
	berth.dev/lease v0.0.0
	berth.dev/tunnel v0.0.0
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

replace (
	berth.dev/files => ../../files
	berth.dev/lease => ../../lease
	berth.dev/tunnel => ../../tunnel
)
