module berth.dev/bus

go 1.26

require (
	github.com/nats-io/nats.go v1.55.0
	github.com/nats-io/nats-server/v2 v2.15.2
	github.com/nats-io/nkeys v0.4.16
)
