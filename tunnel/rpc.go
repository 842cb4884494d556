package tunnel

import (
	"context"
)

// RPCError is an error that crossed the wire.
type RPCError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *RPCError) Error() string { return e.Message }

// Call calls method on the other end of s.
func Call[Req, Resp any](ctx context.Context, s *Session, method string, req Req) (Resp, error) {
	var resp Resp
	return resp, errTODO
}

// Registry maps methods to handlers.
type Registry struct{}

// Handle registers fn for method.
func Handle[Req, Resp any](r *Registry, method string, fn func(context.Context, Req) (Resp, error)) {}

// ServeRPC answers one KindRPC request and returns when it is answered.
func ServeRPC(ctx context.Context, r *Request, reg *Registry) error { return errTODO }
