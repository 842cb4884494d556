package split

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
)

// asked is the copy of a request on its way to a wiretap's handler.
type asked struct {
	port    *Port
	tap     *tap
	out     *http.Request
	body    *queue      // what follows: the body, or all that comes after an upgrade
	trailer http.Header // to be had when that has ended
	cancel  context.CancelFunc
	over    sync.Once // it is counted as lost, or is not to be
}

// askedBody is the body as the transport has it.
type askedBody struct {
	*queue
	a *asked
}

// Read also gives the trailers their values, before the transport looks.
func (b askedBody) Read(p []byte) (int, error) {
	n, err := b.queue.Read(p)
	if err == io.EOF {
		for k := range b.a.out.Trailer {
			b.a.out.Trailer[k] = b.a.trailer[k]
		}
	}
	return n, err
}

func newAsked(ctx context.Context, p *Port, t *tap, r *http.Request) *asked {
	a := &asked{port: p, tap: t, body: newQueue(copyMost)}
	ctx, a.cancel = context.WithCancel(ctx)
	a.out = r.Clone(ctx)
	a.out.RequestURI = ""
	a.out.URL = aimed(r, net.JoinHostPort(t.to.Engagement, itoa(t.to.As)))
	a.out.Trailer = maps.Clone(r.Trailer) // names for now
	if r.Body != http.NoBody {
		a.out.Body = askedBody{a.body, a}
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		a.out.Header["User-Agent"] = []string{""} // none of net/http's own
	}
	p.mu.Lock()
	p.copies[a] = struct{}{}
	p.mu.Unlock()
	return a
}

// run asks, and drops what the handler answers.
func (a *asked) run(ctx context.Context, way *http.Transport) {
	defer func() {
		a.cancel()
		a.body.stop(io.ErrClosedPipe)
		a.tap.open.Add(-1)
		a.port.mu.Lock()
		delete(a.port.copies, a)
		a.port.mu.Unlock()
	}()
	res, err := way.RoundTrip(a.out)
	if err != nil {
		if ctx.Err() == nil {
			a.lose()
		}
		return
	}
	defer res.Body.Close()
	if w, ok := res.Body.(io.Writer); ok && res.StatusCode == http.StatusSwitchingProtocols {
		defer context.AfterFunc(a.out.Context(), func() { _ = res.Body.Close() })()
		go func() { _, _ = io.Copy(io.Discard, res.Body) }()
		_, _ = io.Copy(w, a.body)
		return
	}
	_, _ = io.Copy(io.Discard, res.Body)
}

// put passes on what follows; where that is too much the copy ends.
func (a *asked) put(b []byte) {
	if !a.body.put(b) {
		a.lose()
	}
}

// end says that all of the request has come.
func (a *asked) end(trailer http.Header) {
	a.trailer = trailer
	a.body.end(io.EOF)
}

// lose gives the copy up.
func (a *asked) lose() {
	a.over.Do(func() { a.port.lose(a.tap) })
	a.abort()
}

// abort ends the copy because the client has given the request up.
func (a *asked) abort() {
	a.over.Do(func() {})
	a.cancel()
	a.body.stop(io.ErrUnexpectedEOF)
}

// cut ends the copy because its engagement has.
func (a *asked) cut() { a.abort() }

func (a *asked) of() *tap { return a.tap }

// each writes to all of them.
type each []*asked

func (e each) Write(b []byte) (int, error) {
	for _, a := range e {
		a.put(b)
	}
	return len(b), nil
}
