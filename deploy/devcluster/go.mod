module berth.dev/deploy/devcluster

go 1.26
