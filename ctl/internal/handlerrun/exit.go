package handlerrun

import "strings"

// Exit codes of `docker run` for a container that did not run.
const (
	ExitNotRun      = 125 // for whatever reason
	ExitNotRunnable = 126 // its command cannot be run
	ExitNotFound    = 127 // or is not there
)

// StartCode is Docker's exit code for what the engine says of a container that it
// could not start, as docker/cli tells them apart: by the words.
func StartCode(message string) int {
	switch {
	case !strings.Contains(message, "start container "):
		return 0 // it did not come to that
	case strings.Contains(message, "executable file not found"), strings.Contains(message, "no such file or directory"), strings.Contains(message, "system cannot find the file specified"):
		return ExitNotFound
	case strings.Contains(message, "permission denied"), strings.Contains(message, "is a directory"):
		return ExitNotRunnable
	}
	return 0
}
