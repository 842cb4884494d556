module berth.dev/lease

go 1.26
