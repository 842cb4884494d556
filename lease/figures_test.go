package lease

import (
	"testing"
	"time"
)

// What a process has used of the CPU grows while it computes.
func TestFiguresCPU(t *testing.T) {
	before := FiguresOf("test", 0).CPU
	for end := time.Now().Add(time.Minute); FiguresOf("test", 0).CPU <= before; {
		if time.Now().After(end) {
			t.Fatalf("%d µs, and no more after a minute of computing", before)
		}
	}
}
