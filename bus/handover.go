package bus

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// FilesFlag adds FilesArg to a service's flags. The function that it returns,
// called when those are parsed, writes the files if it was given.
func FilesFlag(fs *flag.FlagSet) (take func(stdin io.Reader) error) {
	given := fs.Bool(FilesArg[2:], false, "first write files that come on standard input, as JSON")
	return func(stdin io.Reader) error {
		if !*given {
			return nil
		}
		var f Files
		// Not to the end: whoever starts the container may hold its input open.
		if json.NewDecoder(stdin).Decode(&f) != nil { // which may quote a key
			return fmt.Errorf("take files from standard input: it is not the JSON that it should be")
		}
		return f.write()
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
