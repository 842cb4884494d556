// Command flagdoc writes docs/docker-run.md out of the table by which runner
// accepts and refuses flags of `docker run`:
//
//	flagdoc FILE
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"berth.dev/services/runner/internal/handler"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: flagdoc FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], document(handler.Flags()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "flagdoc:", err)
		os.Exit(1)
	}
}

const head = `<!-- Written by go generate from services/runner/internal/handler: change it there. -->
# The flags of ` + "`docker run`" + `

What stands behind ` + "`ctl docker-run`" + `, and behind the two dashes of ` + "`ctl replace`, `ingest` and `intercept`" + `, is parsed by Docker's own
command line. The container lives in the network of the connection's daemon container; beside such a network Docker
refuses much of what concerns one. Here is what becomes of each flag; none is ignored.
`

func document(flags []handler.Flag) []byte {
	var b bytes.Buffer
	b.WriteString(head)
	table := func(title, about, column string, t handler.Treatment) {
		fmt.Fprintf(&b, "\n## %s\n%s\n\n| flag | %s |\n|---|---|\n", title, about, column)
		for _, f := range flags {
			if f.Treatment == t {
				fmt.Fprintf(&b, "| %s | %s |\n", code(f.Name), strings.ReplaceAll(f.Note, "|", `\|`))
			}
		}
	}
	table("Made to work", "What Docker refuses beside a shared network. All of it is there before the command reports so, and goes with the container, whatever dies. A busy port, a name or an address that somebody has, a port on which another container of the connection listens: each is an error that names the holder, before anything is started and before the cluster is touched.", "how", handler.Made)
	table("With a difference", "These work, and this is what is different.", "what", handler.Differs)
	table("Refused", "With exit code 2, or 125 of `ctl docker-run`, and these words; nothing has been made then.", "why", handler.Refused)
	b.WriteString("\n## As in Docker\n")
	var all []string
	for _, f := range flags {
		if f.Treatment == handler.Passed {
			all = append(all, code(f.Name))
		}
	}
	b.WriteString(strings.Join(all, ", ") + ".\n")
	return b.Bytes()
}

// code marks each of the flags in a name as code.
func code(name string) string {
	parts := strings.Split(name, ", ")
	for i, p := range parts {
		parts[i] = "`" + p + "`"
	}
	return strings.Join(parts, ", ")
}
