package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// maxBody bounds the JSON of an RPC's request and of its answer, in bytes.
const maxBody = 4 << 20

// RPCError is an error that crosses the wire. Codes are those of the bus's
// faults: invalid_argument, not_found, already_exists, failed_precondition,
// permission_denied, unavailable, internal.
type RPCError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // a command to type
}

func (e *RPCError) Error() string { return e.Message }

// asRPCError finds the RPCError in err or makes one.
func asRPCError(err error) *RPCError {
	var e *RPCError
	if errors.As(err, &e) {
		return e
	}
	code := "internal"
	var version *VersionError
	if errors.As(err, &version) {
		code = "failed_precondition"
	}
	return &RPCError{Code: code, Message: err.Error()}
}

type rpcAnswer struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *RPCError       `json:"error,omitempty"`
}

// Call calls method on the far side of s and waits for its answer; a small
// request and a small answer take one round trip. An error of the handler is
// an *RPCError, an unknown method a *RefusedError with CodeNotFound. When ctx
// ends, so does the handler's.
func Call[Req, Resp any](ctx context.Context, s *Session, method string, req Req) (Resp, error) {
	var resp Resp
	body, err := json.Marshal(req)
	if err != nil {
		return resp, fmt.Errorf("call %s: encode: %w", method, err)
	}
	result, err := call(ctx, s, method, body)
	if err != nil {
		return resp, fmt.Errorf("call %s: %w", method, err)
	}
	if len(result) > 0 {
		if err := json.Unmarshal(result, &resp); err != nil {
			return resp, fmt.Errorf("call %s: decode answer: %w", method, err)
		}
	}
	return resp, nil
}

func call(ctx context.Context, s *Session, method string, body []byte) (json.RawMessage, error) {
	if len(body) > maxBody {
		return nil, fmt.Errorf("request of %d bytes, more than %d: %w", len(body), maxBody, syscall.EMSGSIZE)
	}
	early := body[:min(len(body), maxEarly)]
	st, err := s.open(ctx, Header{Kind: KindRPC, Method: method}, early, len(early) == len(body))
	if err != nil {
		return nil, err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Reset(CodeCanceled) })
	defer stop()
	raw, err := exchange(st, body[len(early):])
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	var a rpcAnswer
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("decode answer: %w", err)
	}
	if a.Error != nil {
		return nil, a.Error
	}
	return a.Result, nil
}

func exchange(st *Stream, rest []byte) ([]byte, error) {
	if len(rest) > 0 {
		if _, err := st.Write(rest); err != nil {
			return nil, err
		}
	}
	_ = st.CloseWrite()
	return readBody(st)
}

func readBody(st *Stream) ([]byte, error) {
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(st, maxBody+1))
	if err != nil {
		return nil, err
	}
	if n > maxBody {
		return nil, fmt.Errorf("more than %d bytes: %w", maxBody, syscall.EMSGSIZE)
	}
	return buf.Bytes(), nil
}

// Registry maps method names to handlers; the zero value is empty. One per
// session lets its handlers know whom they serve. Register before serving.
type Registry struct {
	mu       sync.RWMutex
	handlers map[string]func(context.Context, []byte) (any, error)
	// Translate, if set, makes an RPCError of a handler's error that is none;
	// it may return nil.
	Translate func(error) *RPCError
}

// Handle registers fn for method, in place of an earlier one. The JSON of
// requests may have fields that Req has not.
func Handle[Req, Resp any](r *Registry, method string, fn func(context.Context, Req) (Resp, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handlers == nil {
		r.handlers = make(map[string]func(context.Context, []byte) (any, error))
	}
	r.handlers[method] = func(ctx context.Context, body []byte) (any, error) {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, &RPCError{Code: "invalid_argument", Message: fmt.Sprintf("decode request of %s: %v", method, err)}
		}
		return fn(ctx, req)
	}
}

// ServeRPC answers one KindRPC request from reg, and returns when the answer
// is on its way; run it in a goroutine of its own. Its error, for logs, is the
// handler's or the stream's.
func ServeRPC(ctx context.Context, r *Request, reg *Registry) error {
	method := r.Header.Method
	reg.mu.RLock()
	handler := reg.handlers[method]
	reg.mu.RUnlock()
	if r.Header.Kind != KindRPC || handler == nil {
		r.Refuse(CodeNotFound, fmt.Sprintf("no method %q", method))
		return fmt.Errorf("serve rpc: no method %q", method)
	}
	ctx, cancel := r.Context(ctx)
	defer cancel()
	st, err := r.Accept()
	if err != nil {
		return fmt.Errorf("serve rpc: %w", err)
	}
	defer st.Close()
	// Without this a caller that neither sends nor goes would hold a server
	// that is shutting down.
	stop := context.AfterFunc(ctx, func() { st.Reset(CodeCanceled) })
	body, err := readBody(st)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		st.Reset(CodeOf(err))
		return fmt.Errorf("serve rpc %s: read: %w", method, err)
	}
	result, herr := handler(ctx, body)
	if _, err := st.Write(reg.encode(result, herr)); err != nil {
		return fmt.Errorf("serve rpc %s: answer: %w", method, err)
	}
	if herr != nil {
		return fmt.Errorf("serve rpc %s: %w", method, herr)
	}
	return nil
}

func (r *Registry) encode(result any, err error) []byte {
	var a rpcAnswer
	if err == nil {
		a.Result, err = json.Marshal(result)
		if err == nil && len(a.Result) > maxBody-1024 {
			err = fmt.Errorf("answer of %d bytes, more than %d", len(a.Result), maxBody)
		}
	}
	if err != nil {
		a = rpcAnswer{}
		var own *RPCError
		if r.Translate != nil && !errors.As(err, &own) {
			a.Error = r.Translate(err)
		}
		if a.Error == nil {
			a.Error = asRPCError(err)
		}
	}
	out, err := json.Marshal(a)
	if err != nil { // cannot be: all of it was encoded before
		return []byte(`{"error":{"code":"internal","message":"encode answer"}}`)
	}
	return out
}
