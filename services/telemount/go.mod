module berth.dev/services/telemount

go 1.26.0

require (
	berth.dev/bus v0.0.0
	berth.dev/files v0.0.0
	berth.dev/tunnel v0.0.0
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

replace (
	berth.dev/bus => ../../bus
	berth.dev/files => ../../files
	berth.dev/tunnel => ../../tunnel
)
