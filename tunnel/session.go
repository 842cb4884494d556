package tunnel

import (
	"context"
	"errors"
	"net"
	"time"
)

var errTODO = errors.New("not implemented yet")

// Session is one multiplexed connection.
type Session struct{}

// NewSession starts a session on conn.
func NewSession(conn net.Conn, client bool, cfg Config) *Session { return &Session{} }

func (s *Session) Open(ctx context.Context, h Header) (*Stream, error) { return nil, errTODO }
func (s *Session) Accept(ctx context.Context) (*Request, error)        { return nil, errTODO }
func (s *Session) Close() error                                        { return errTODO }
func (s *Session) CloseWithError(err error) error                      { return errTODO }
func (s *Session) Done() <-chan struct{}                               { return nil }
func (s *Session) Err() error                                          { return errTODO }
func (s *Session) RTT() time.Duration                                  { return 0 }
func (s *Session) NumStreams() int                                     { return 0 }

// Request is a stream that the peer wants to open.
type Request struct{ Header Header }

func (r *Request) Accept() (*Stream, error)     { return nil, errTODO }
func (r *Request) Refuse(code Code, msg string) {}
