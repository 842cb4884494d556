//go:build unix

package tunnel

import (
	"syscall"
	"time"
)

// cpuTime returns the CPU time that this process, so both ends, has used.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
