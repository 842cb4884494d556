package bus

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"berth.dev/bus/subject"
)

// Files are contents of files by their absolute paths: what a service in a
// container is given by whoever starts it, keys among them.
//
// They go to its standard input, as one JSON value. Environment and arguments are
// seen by all who may inspect the container; a copy by the engine is as private,
// but costs a mount of the container's file system, a tenth of a second.
type Files map[string][]byte

// FilesArg is the flag with which a service takes its Files before it reads any
// of them.
const FilesArg = "--files-from-stdin"

// introduction is the name, of no file, under which Files hold an [Identity]: see
// [Introduce].
const introduction = "introduction"

// FilesFlag adds FilesArg to a service's flags. The function that it returns,
// called when those are parsed, writes the files if it was given.
func FilesFlag(fs *flag.FlagSet) (take func(stdin io.Reader) (*Handover, error)) {
	given := fs.Bool(FilesArg[2:], false, "first write files that come on standard input, as JSON")
	return func(stdin io.Reader) (*Handover, error) {
		if !*given {
			return nil, nil
		}
		h := &Handover{in: json.NewDecoder(stdin)}
		for {
			f, err := h.next()
			if errors.Is(err, io.EOF) {
				err = errors.New("take files from standard input: there are none")
			}
			if err != nil {
				return nil, err
			}
			// The engine does not say which of two that write at once comes first.
			if b := f[introduction]; b != nil {
				h.early = append(h.early, b)
				continue
			}
			return h, f.write()
		}
	}
}

// Handover is a service's standard input behind its Files.
type Handover struct {
	in    *json.Decoder
	early [][]byte
}

func (h *Handover) next() (Files, error) {
	var f Files
	// Not to the end: whoever starts the container may hold its input open.
	switch err := h.in.Decode(&f); {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case err != nil: // which may quote a key
		return nil, errors.New("take files from standard input: it is not the JSON that it should be")
	}
	return f, nil
}

// Introduce is what one writes to the standard input of connector's container to
// have an identity of one's own admitted, as ctl and nothing else. Whoever can do
// that may use the engine, and therefore the bus.
func Introduce(id Identity) ([]byte, error) {
	b, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("marshal the identity %s: %w", id.Name, err)
	}
	return json.Marshal(Files{introduction: b})
}

// Introductions calls admit for each identity that is introduced, until nothing
// more can come, which is no error, or what comes is not to be understood. A nil
// Handover brings none.
func (h *Handover) Introductions(admit func(Identity)) error {
	if h == nil {
		return nil
	}
	for {
		var b []byte
		if len(h.early) > 0 {
			b, h.early = h.early[0], h.early[1:]
		} else {
			f, err := h.next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			b = f[introduction]
		}
		var id Identity
		if err := json.Unmarshal(b, &id); err != nil {
			return fmt.Errorf("take an introduction from standard input: %w", err)
		}
		// No more than this is anybody's to choose.
		id.Service, id.Connection = subject.Ctl, ""
		admit(id)
	}
}

func (f Files) write() error {
	for name, content := range f {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return fmt.Errorf("take files from standard input: %w", err)
		}
		// Whole or not at all: others read some of them while we run.
		if err := os.WriteFile(name+".new", content, 0o600); err != nil {
			return fmt.Errorf("take files from standard input: %w", err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			return fmt.Errorf("take files from standard input: %w", err)
		}
	}
	return nil
}
