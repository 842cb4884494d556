// Package render prints: results to stdout, progress to stderr, errors as
//
//	ctl: <stage>: <message>
//	  try: <hint>
//
// With --output json results are JSON, one value on each line for what streams:
// the bus's envelopes, unchanged. Progress is not printed then; the facts on
// stdout tell it.
//
// A Printer may be used by several goroutines.
package render

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// Printer prints for one command.
type Printer struct {
	Stdout, Stderr io.Writer
	JSON           bool

	mu    sync.Mutex
	quiet bool
}

// Quiet holds progress back: a container has the terminal.
func (p *Printer) Quiet(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = on
}

// Progress prints a line of progress.
func (p *Printer) Progress(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.JSON && !p.quiet {
		fmt.Fprintf(p.Stderr, format+"\n", args...)
	}
}

// Notice prints a line to stderr whatever the output is: what people have to
// know beside the result.
func (p *Printer) Notice(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.Stderr, format+"\n", args...)
}

// Result prints a line of the result as text; JSON prints it otherwise.
func (p *Printer) Result(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.JSON {
		fmt.Fprintf(p.Stdout, format+"\n", args...)
	}
}

// Value prints v on one line if the output is JSON.
func (p *Printer) Value(v any) error {
	if !p.JSON {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = fmt.Fprintf(p.Stdout, "%s\n", b)
	return err
}

// Fact prints an envelope if the output is JSON.
func (p *Printer) Fact(e event.Envelope) { _ = p.Value(e) }

// Table prints rows in columns if the output is text; the first row is the head.
func (p *Printer) Table(rows [][]string) {
	if p.JSON {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	tw := tabwriter.NewWriter(p.Stdout, 0, 2, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush()
}

// Error prints an error to w.
func Error(w io.Writer, tool string, err error) {
	f := fault.From(err)
	msg := strings.TrimSpace(f.Message)
	if f.Stage != "" {
		msg = f.Stage + ": " + msg
	}
	fmt.Fprintf(w, "%s: %s\n", tool, msg)
	if f.Hint != "" {
		fmt.Fprintf(w, "  try: %s\n", f.Hint)
	}
}
