package build

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/buildstream"
	"berth.dev/bus/event"

	"golang.org/x/term"
)

// screen shows progress: on a terminal one line for each step that is over, and
// below them one that says what is at work; elsewhere plain lines.
type screen struct {
	w    io.Writer
	live int // columns of the terminal; 0: plain
	mute bool

	mu      sync.Mutex
	working []int // steps, oldest first
	names   map[int]string
	begun   map[int]time.Time
	last    string
	drawn   bool
	over    bool
	ticker  chan struct{}
}

func newScreen(w io.Writer, plain, mute bool) *screen {
	s := &screen{w: w, mute: mute, names: map[int]string{}, begun: map[int]time.Time{}, ticker: make(chan struct{})}
	if f, ok := w.(*os.File); ok && !plain && !mute && term.IsTerminal(int(f.Fd())) {
		if cols, _, err := term.GetSize(int(f.Fd())); err == nil && cols > 20 {
			s.live = cols
			go s.tick()
		}
	}
	return s
}

// tick keeps the seconds going, until end.
func (s *screen) tick() {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-s.ticker:
			return
		case <-t.C:
			s.mu.Lock()
			s.draw()
			s.mu.Unlock()
		}
	}
}

func (s *screen) see(p buildstream.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mute || s.over:
		return
	case s.live == 0:
		_, _ = io.WriteString(s.w, p.Plain())
		return
	}
	took := (time.Duration(p.Millis) * time.Millisecond).Seconds()
	switch p.State {
	case buildstream.Begun:
		s.working = append(s.working, p.Step)
		s.names[p.Step], s.begun[p.Step] = p.Name, time.Now()
		s.last = ""
	case buildstream.Line:
		if l := strings.TrimSpace(lastLine(p.Text)); l != "" {
			s.last = l
		}
		if p.Step == 0 {
			s.print(strings.TrimRight(p.Text, "\n"))
		}
	case buildstream.Cached:
		s.print(fmt.Sprintf("  %-40s cached", s.names[p.Step]))
		s.drop(p.Step)
	case buildstream.Ended:
		s.print(fmt.Sprintf("  %-40s %.1fs", s.names[p.Step], took))
		s.drop(p.Step)
	case buildstream.Broken:
		s.print(fmt.Sprintf("  %-40s FAILED after %.1fs", s.names[p.Step], took))
		s.drop(p.Step)
	}
	s.draw()
}

func (s *screen) drop(step int) {
	for i, n := range s.working {
		if n == step {
			s.working = append(s.working[:i], s.working[i+1:]...)
			return
		}
	}
}

// print prints a line above the one that is redrawn.
func (s *screen) print(line string) {
	s.clear()
	fmt.Fprintln(s.w, line)
}

func (s *screen) clear() {
	if s.drawn {
		_, _ = io.WriteString(s.w, "\r\x1b[K")
		s.drawn = false
	}
}

// draw draws the line of what is at work.
func (s *screen) draw() {
	s.clear()
	if len(s.working) == 0 || s.over {
		return
	}
	n := s.working[len(s.working)-1]
	line := []rune(fmt.Sprintf("> %s %.1fs %s", s.names[n], time.Since(s.begun[n]).Seconds(), strings.Map(printable, s.last)))
	_, _ = io.WriteString(s.w, string(line[:min(len(line), s.live-1)]))
	s.drawn = true
}

func printable(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

func lastLine(text string) string {
	text = strings.TrimRight(text, "\r\n")
	return text[strings.LastIndexAny(text, "\r\n")+1:]
}

// end stops drawing.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.clear()
		s.over = true
		close(s.ticker)
	}
}

// failed shows the output of the step that failed, last and whatever was shown.
func (s *screen) failed(f event.BuildFailed) {
	if len(f.Output) == 0 {
		return
	}
	fmt.Fprintf(s.w, "------\n%s:\n", f.Error.Stage)
	for _, l := range f.Output {
		fmt.Fprintf(s.w, "  %s\n", l)
	}
	fmt.Fprintln(s.w, "------")
}

func (s *screen) finished(f event.BuildFinished) {
	if s.mute {
		return
	}
	var b strings.Builder
	for _, p := range f.Phases {
		fmt.Fprintf(&b, ", %s %d ms", p.Name, p.Millis)
	}
	fmt.Fprintf(s.w, "built %.19s with %s%s\n", f.ImageID, f.Builder, b.String())
}
