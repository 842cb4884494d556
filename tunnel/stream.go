package tunnel

import (
	"net"
	"time"
)

// Stream is one flow of a session.
type Stream struct{}

func (s *Stream) Read(p []byte) (int, error)               { return 0, errTODO }
func (s *Stream) Write(p []byte) (int, error)              { return 0, errTODO }
func (s *Stream) Close() error                             { return errTODO }
func (s *Stream) CloseWrite() error                        { return errTODO }
func (s *Stream) CloseRead() error                         { return errTODO }
func (s *Stream) Reset(code Code)                          {}
func (s *Stream) Header() Header                           { return Header{} }
func (s *Stream) ReadPacket(buf []byte) (n int, err error) { return 0, errTODO }
func (s *Stream) WritePacket(b []byte) error               { return errTODO }
func (s *Stream) LocalAddr() net.Addr                      { return nil }
func (s *Stream) RemoteAddr() net.Addr                     { return nil }
func (s *Stream) SetDeadline(t time.Time) error            { return errTODO }
func (s *Stream) SetReadDeadline(t time.Time) error        { return errTODO }
func (s *Stream) SetWriteDeadline(t time.Time) error       { return errTODO }
