package hostspace

import (
	"context"
	"os"

	"berth.dev/bus/fault"
)

// Telemount is telemount's program, which lies beside ctl's own.
func (s *Space) Telemount(context.Context, string) ([]byte, error) {
	path, err := program("telemount")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "make build", "read telemount's program: %v", err)
	}
	return b, nil
}
