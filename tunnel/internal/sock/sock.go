// Package sock reads and writes TCP sockets at less cost to Go's scheduler.
//
// net announces each system call to the scheduler, since any might block. Those on a
// socket that does not block never do; but the announcement wakes a thread of the
// runtime's if the process was idle, and a call of more than some 20 µs, in which the
// kernel runs the receiver's half of TCP too, has its processor taken away. Where small
// messages come and go that is a fifth of the CPU. A Socket makes its calls
// unannounced; it waits in the runtime's poller as net does.
//
//	s := sock.Of(conn) // nil: use conn itself
//	n, err := s.Read(p)
package sock

// announced is the size from which on a write is made as net makes it: to copy so much
// is worth that others may run.
const announced = 16 << 10
