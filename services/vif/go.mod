module berth.dev/services/vif

go 1.26.3

require (
	berth.dev/tunnel v0.0.0
	github.com/miekg/dns v1.1.73
	github.com/vishvananda/netlink v1.3.1
	go.uber.org/goleak v1.3.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	gvisor.dev/gvisor v0.0.0-20260905035102-160fafc42237
)

require (
	github.com/google/btree v1.1.3 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/exp v0.0.0-20250711185948-6ae5c78190dc // indirect
	golang.org/x/net v0.57.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)

replace berth.dev/bus => ../../bus

replace berth.dev/tunnel => ../../tunnel
