package bus

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
)

// Streams of a container's output. A container with a terminal has only stdout.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

const (
	outputChunk  = 32 << 10  // largest message
	outputBuffer = 256 << 10 // what may wait before Write blocks
	// endHeader marks the empty message after the last piece of output.
	endHeader = "Berth-Output-End"
)

// Output publishes what a container of an engagement writes on the stream
// OUTPUT, in order. Writes return at once while the bus keeps up and block when
// 256 KiB wait; small writes that wait become one message. Close it.
type Output struct {
	conn    *Conn
	of      string                     // what it is the output of, for people
	subject func(stream string) string // on which it rides
	id      string                     // of this output, makes message ids

	mu     sync.Mutex
	work   *sync.Cond
	queue  []piece
	size   int
	closed bool
	err    error // why nothing more is taken
	done   chan struct{}
	cancel context.CancelFunc
}

// piece is output of one stream.
type piece struct {
	stream string
	data   []byte
}

// Output opens the output of the engagement's container that service runs.
func (c *Conn) Output(engagement string, service subject.Service) *Output {
	return c.output(engagement, func(stream string) string { return subject.Output(engagement, service, stream) })
}

// BuildOutput opens the output of a build.
func (c *Conn) BuildOutput(build string) *Output {
	return c.output(build, func(stream string) string { return subject.BuildOutput(build, stream) })
}

func (c *Conn) output(of string, on func(stream string) string) *Output {
	ctx, cancel := context.WithCancel(context.Background())
	o := &Output{conn: c, of: of, subject: on, id: rand.Text(), done: make(chan struct{}), cancel: cancel}
	o.work = sync.NewCond(&o.mu)
	go o.run(ctx)
	return o
}

// Stdout is where the container's standard output goes.
func (o *Output) Stdout() io.Writer { return outputWriter{o, Stdout} }

// Stderr is where its standard error goes.
func (o *Output) Stderr() io.Writer { return outputWriter{o, Stderr} }

type outputWriter struct {
	o      *Output
	stream string
}

func (w outputWriter) Write(p []byte) (int, error) {
	o := w.o
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := 0; n < len(p); {
		for o.size >= outputBuffer && o.err == nil && !o.closed {
			o.work.Wait()
		}
		if o.err != nil {
			return n, o.err
		}
		if o.closed {
			return n, io.ErrClosedPipe
		}
		n += o.add(w.stream, p[n:])
		o.work.Broadcast()
	}
	return len(p), nil
}

// add queues the beginning of p, to the last piece if that is of the same
// stream and has room.
func (o *Output) add(stream string, p []byte) int {
	if n := len(o.queue); n == 0 || o.queue[n-1].stream != stream || len(o.queue[n-1].data) == outputChunk {
		o.queue = append(o.queue, piece{stream: stream})
	}
	last := &o.queue[len(o.queue)-1]
	n := min(len(p), outputChunk-len(last.data))
	last.data = append(last.data, p[:n]...)
	o.size += n
	return n
}

// run publishes piece by piece; the next one gathers while one is on its way.
func (o *Output) run(ctx context.Context) {
	defer close(o.done)
	for seq := 0; ; seq++ {
		o.mu.Lock()
		for len(o.queue) == 0 && !o.closed {
			o.work.Wait()
		}
		end := len(o.queue) == 0
		p := piece{stream: Stdout}
		if !end {
			p = o.queue[0]
			o.queue = o.queue[1:]
		}
		o.mu.Unlock()

		msg := nats.NewMsg(o.subject(p.stream))
		msg.Data = p.data
		if end {
			msg.Header.Set(endHeader, "1")
		}
		err := o.conn.store(ctx, OutputStream, msg, o.id+"-"+strconv.Itoa(seq))
		o.mu.Lock()
		o.size -= len(p.data)
		if err != nil {
			o.err = fmt.Errorf("publish output of %s: %w", o.of, err)
		}
		o.work.Broadcast()
		o.mu.Unlock()
		if end || err != nil {
			return
		}
	}
}

// Close waits until everything has been published, or for ctx, and marks the
// end. What ctx cut off is lost.
func (o *Output) Close(ctx context.Context) error {
	o.mu.Lock()
	o.closed = true
	o.work.Broadcast()
	o.mu.Unlock()
	defer o.cancel()
	select {
	case <-o.done:
	case <-ctx.Done():
		o.cancel()
		<-o.done
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// OutputPiece is a piece of a container's output.
type OutputPiece struct {
	Service subject.Service
	Stream  string // Stdout or Stderr
	Time    time.Time
	Data    []byte
}

// OutputTail reads the output of an engagement's containers in order.
type OutputTail struct{ r *reader }

// TailOutput opens a tail over the output of an engagement, from its beginning
// or what the stream still holds of it.
func (c *Conn) TailOutput(ctx context.Context, engagement string) (*OutputTail, error) {
	if !subject.Valid(engagement) {
		return nil, fmt.Errorf("tail output: %q is no id", engagement)
	}
	r, err := c.read(ctx, OutputStream, time.Time{}, []string{subject.OutputOf(engagement)})
	if err != nil {
		return nil, fmt.Errorf("tail output: %w", err)
	}
	return &OutputTail{r: r}, nil
}

// TailBuildOutput is TailOutput for a build.
func (c *Conn) TailBuildOutput(ctx context.Context, build string) (*OutputTail, error) {
	if !subject.Valid(build) {
		return nil, fmt.Errorf("tail output: %q is no id", build)
	}
	r, err := c.read(ctx, OutputStream, time.Time{}, []string{subject.OutputOfBuild(build)})
	if err != nil {
		return nil, fmt.Errorf("tail output: %w", err)
	}
	return &OutputTail{r: r}, nil
}

// Next waits for the next piece. It returns io.EOF after the last piece of a
// container; where an engagement has several containers (a build, then the
// handler), reading on reads the next one's. Other errors are Tail's.
func (t *OutputTail) Next(ctx context.Context) (OutputPiece, error) {
	msg, err := t.r.next(ctx)
	if err != nil {
		return OutputPiece{}, fmt.Errorf("read output: %w", err)
	}
	if msg.Headers().Get(endHeader) != "" {
		return OutputPiece{}, io.EOF
	}
	_, service, stream, err := subject.ParseOutput(msg.Subject())
	if err != nil {
		return OutputPiece{}, fmt.Errorf("read output: %w", err)
	}
	p := OutputPiece{Service: service, Stream: stream, Data: msg.Data()}
	if md, err := msg.Metadata(); err == nil {
		p.Time = md.Timestamp
	}
	return p, nil
}

// Stop ends the tail, and a Next that waits.
func (t *OutputTail) Stop() { t.r.stop() }
