module berth.dev/deploy/image

go 1.26

require berth.dev/deploy/devcluster v0.0.0

replace berth.dev/deploy/devcluster => ../devcluster
