module berth.dev/services/agent

go 1.26.0

require (
	berth.dev/files v0.0.0
	berth.dev/lease v0.0.0
	berth.dev/tunnel v0.0.0
	github.com/google/nftables v0.3.0
	github.com/gorilla/websocket v1.5.4-0.20250319132907-e064f32e3674
	github.com/mdlayher/netlink v1.7.3-0.20250113171957-fbb4dce95f42
	github.com/peterbourgon/ff/v3 v3.4.0
	golang.org/x/net v0.58.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	google.golang.org/grpc v1.83.2
	google.golang.org/protobuf v1.36.11
)

require (
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/mdlayher/socket v0.5.0 // indirect
	golang.org/x/text v0.41.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260526163538-3dc84a4a5aaa // indirect
)

replace (
	berth.dev/files => ../../files
	berth.dev/lease => ../../lease
	berth.dev/tunnel => ../../tunnel
)
