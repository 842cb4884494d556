package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// message is a line of the engine's answer to a build, for both builders.
type message struct {
	Stream      string          `json:"stream"`
	Status      string          `json:"status"`
	Progress    json.RawMessage `json:"progressDetail"`
	ID          string          `json:"id"`
	Aux         json.RawMessage `json:"aux"`
	Error       string          `json:"error"`
	ErrorDetail *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errorDetail"`
}

// buildError is what the engine says of a build that failed.
type buildError struct{ msg string }

func (e buildError) Error() string { return e.msg }

// read gives each message of the answer to see, up to its end. The engine's own
// verdict is a buildError; an answer that breaks off is errCut.
func read(ctx context.Context, body io.Reader, see func(message)) error {
	dec := json.NewDecoder(body)
	for {
		var m message
		err := dec.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("%w: %w", errCut, err)
		}
		if m.ErrorDetail != nil && m.ErrorDetail.Message != "" {
			return buildError{m.ErrorDetail.Message}
		}
		if m.Error != "" {
			return buildError{m.Error}
		}
		see(m)
	}
}

// imageID is the ID in an aux message, or "".
func imageID(aux json.RawMessage) string {
	var r struct{ ID string }
	if json.Unmarshal(aux, &r) != nil {
		return ""
	}
	return r.ID
}
