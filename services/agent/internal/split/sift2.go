package split

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// tableSize is that of HPACK until the app says otherwise, which is not heard here:
// a client that has been told tells its own (RFC 7541, section 4.2).
const tableSize = 4 << 10

// two reads a client's connection by HTTP/2 (RFC 9113).
func (s *sifter) two(ctx context.Context, br *bufio.Reader) error {
	_, _ = br.Discard(len(preface))
	fr := http2.NewFramer(io.Discard, br)
	fr.SetReuseFrames()
	fr.SetMaxReadFrameSize(headMost)
	fr.MaxHeaderListSize = headMost
	fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
	fr.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(headMost)
	open := map[uint32][]*asked{} // streams of which there are copies
	end := func(id uint32, trailer http.Header) {
		for _, a := range open[id] {
			a.end(trailer)
		}
		delete(open, id)
	}
	abort := func(id uint32) {
		for _, a := range open[id] {
			a.abort()
		}
		delete(open, id)
	}
	defer func() {
		for id := range open {
			abort(id)
		}
	}()
	for last := uint32(0); ; {
		f, err := fr.ReadFrame()
		var broken http2.StreamError
		if errors.As(err, &broken) {
			abort(broken.StreamID)
			continue
		}
		if err != nil {
			return malformed(err, false)
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if id <= last {
				if f.StreamEnded() {
					end(id, headerOf(f))
				}
				continue
			}
			last = id
			r := requestOf(f)
			if r == nil {
				continue
			}
			if open[id], err = s.ask(ctx, r); err != nil {
				return err
			}
			if f.StreamEnded() || len(open[id]) == 0 {
				end(id, nil)
			}
		case *http2.DataFrame:
			_, _ = each(open[id]).Write(f.Data())
			if f.StreamEnded() {
				end(id, nil)
			}
		case *http2.RSTStreamFrame:
			abort(id)
		}
	}
}

// requestOf is the request that a stream begins with, as net/http would have it; nil
// for one that is none (CONNECT).
func requestOf(f *http2.MetaHeadersFrame) *http.Request {
	r := &http.Request{
		Method: f.PseudoValue("method"), RequestURI: f.PseudoValue("path"), Host: f.PseudoValue("authority"),
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: headerOf(f), Body: http.NoBody,
	}
	var err error
	if r.URL, err = url.ParseRequestURI(r.RequestURI); err != nil || r.Method == "" || f.Truncated {
		return nil
	}
	if r.Host == "" {
		r.Host = r.Header.Get("Host")
	}
	r.Header.Del("Host")
	for _, names := range r.Header["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			if r.Trailer == nil {
				r.Trailer = http.Header{}
			}
			r.Trailer[http.CanonicalHeaderKey(strings.TrimSpace(name))] = nil
		}
	}
	r.Header.Del("Trailer")
	if !f.StreamEnded() {
		r.Body, r.ContentLength = io.NopCloser(nil), -1 // it follows
		if n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 63); err == nil {
			r.ContentLength = n
		}
	}
	return r
}

func headerOf(f *http2.MetaHeadersFrame) http.Header {
	h := http.Header{}
	for _, field := range f.RegularFields() {
		h.Add(field.Name, field.Value)
	}
	if cookies := h["Cookie"]; len(cookies) > 1 { // parts of one (RFC 9113, section 8.2.3)
		h.Set("Cookie", strings.Join(cookies, "; "))
	}
	return h
}
