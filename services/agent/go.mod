module berth.dev/services/agent

go 1.26.0

require (
	berth.dev/files v0.0.0
	berth.dev/lease v0.0.0
	berth.dev/tunnel v0.0.0
	github.com/google/nftables v0.3.0
	github.com/mdlayher/netlink v1.7.3-0.20250113171957-fbb4dce95f42
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/google/go-cmp v0.6.0 // indirect
	github.com/mdlayher/socket v0.5.0 // indirect
	golang.org/x/net v0.57.0 // indirect
)

replace (
	berth.dev/files => ../../files
	berth.dev/lease => ../../lease
	berth.dev/tunnel => ../../tunnel
)
