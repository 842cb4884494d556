// Package files is the protocol by which a handler on a developer's machine uses
// the volumes of a container in the cluster, its server (linked by the agent) and
// its client (linked by telemount). It depends on the standard library and
// golang.org/x/sys only.
//
// # Protocol
//
// One byte stream (a tunnel stream, a TCP connection, a net.Pipe) carries one
// root: a mount path of the engaged container. Frames are a 32-bit little-endian
// length and that many bytes. The first frame of a client is its hello: magic,
// version, token of the engagement, client id, root. Nothing else is read before
// the token has been compared. From then on requests (id, acknowledged id,
// operation, arguments) and answers (id, errno, result) are pipelined without
// any order between ids; answers with id 0 are invalidations that the server
// pushes.
//
// Paths are relative to the root, in the form of [io/fs.ValidPath] ("" for the
// root itself), and the server never follows a symbolic link, neither in the
// middle nor at the end: the kernel above the client resolves links, inside the
// handler's own file system. That is what confines the server to its root; see
// confine.go.
//
// # What survives a lost connection
//
// The client dials again, up to [Options.Timeout]; until then calls block, after
// that they fail with EIO until a connection is back. The client's id finds the
// server's session again: open files are still open there, and requests whose
// answer was lost are sent again under their old id and answered from the
// session's record, so nothing is done twice. A server that does not know the
// session (it was restarted, the pod is another one) gets the open files by
// path; a file whose identity (inode and birth time) is another one is ESTALE
// from then on, never other data. Requests that cannot be repeated blindly
// (create, rename, append, …) and may have been done by the server that is gone
// end with EIO. Acknowledged writes that were not fsynced when the kernel behind
// the server changed (another boot id: another node) are reported as EIO by the
// next fsync or close of that file.
//
// # Coherence
//
// Every attribute in an answer says whether the directory is watched (inotify).
// If so the client may keep it until it is told otherwise: the server remembers
// what it last told and pushes when the truth differs. What the client itself
// changed is not pushed back to it. Where inotify tells nothing (network file
// systems, too many watches, hard links) answers are marked unwatched, and the
// client should not keep them for longer than a second.
// Not seen: stores through a shared mapping in the pod, of which inotify says
// nothing; and a foreign write that leaves size, mtime and ctime as the client's
// own last write did, which needs the same clock tick (at most 4 ms, on kernels
// before 6.13).
package files
