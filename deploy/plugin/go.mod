module berth.dev/deploy/plugin

go 1.26.0
