module berth.dev/services/connector

go 1.26.0

replace (
	berth.dev/bus => ../../bus
	berth.dev/deploy/manifests => ../../deploy/manifests
	berth.dev/lease => ../../lease
	berth.dev/tunnel => ../../tunnel
)

require (
	berth.dev/bus v0.0.0-00010101000000-000000000000
	berth.dev/lease v0.0.0-00010101000000-000000000000
)
