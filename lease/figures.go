package lease

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
)

// Figures are what a process of Berth holds at a moment: what must not grow for ever.
type Figures struct {
	Process    string `json:"process"` // "vif", "manager", "agent POD"
	Goroutines int    `json:"goroutines"`
	Files      int    `json:"files"`       // open descriptors
	Memory     int64  `json:"memoryBytes"` // resident
	Heap       int64  `json:"heapBytes"`   // of it what the last collection found in use
	Streams    int    `json:"streams"`     // of its tunnel sessions
	CPU        int64  `json:"cpuMicros"`   // used since it was started
}

// FiguresOf are the caller's own figures, under the name process. What the kernel
// does not tell is 0.
func FiguresOf(process string, streams int) Figures {
	f := Figures{Process: process, Goroutines: runtime.NumGoroutine(), Streams: streams}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if metrics.Read(live); live[0].Value.Kind() == metrics.KindUint64 {
		f.Heap = int64(live[0].Value.Uint64())
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		f.Files = len(fds) - 1 // without that of the directory
	}
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident int64
		if _, err := fmt.Fscan(strings.NewReader(string(statm)), &size, &resident); err == nil {
			f.Memory = resident * int64(os.Getpagesize())
		}
	}
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		// The 12th and 13th behind the name, in ticks of 10 ms (proc_pid_stat(5)).
		if rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(rest) > 12 {
			user, _ := strconv.ParseInt(rest[11], 10, 64)
			kernel, _ := strconv.ParseInt(rest[12], 10, 64)
			f.CPU = (user + kernel) * 10_000
		}
	}
	return f
}
