module berth.dev/deploy/manifests

go 1.26.0
