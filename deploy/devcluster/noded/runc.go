package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// runcFilter is the name under which noded stands in for runc where the machine
// withholds CAP_SYS_RESOURCE. A privileged pod asks for every capability there
// is, and runc fails if one cannot be had; the filter takes that one out of the
// bundle and then becomes runc. So the same manifests run on both kinds of
// machine.
const runcFilter = "runc-restricted"

const runcPath = "/usr/sbin/runc"

// filterRunc edits the bundle of `runc create` or `runc run`, and `--process`
// of `runc exec`, and executes runc with the arguments unchanged.
func filterRunc(args []string) error {
	for i, a := range args {
		if i+1 == len(args) {
			break
		}
		switch a {
		case "--bundle", "-b":
			if err := editJSON(filepath.Join(args[i+1], "config.json"), func(spec map[string]any) {
				if process, ok := spec["process"].(map[string]any); ok {
					dropSysResource(process)
				}
			}); err != nil {
				return err
			}
		case "--process", "-p":
			if err := editJSON(args[i+1], dropSysResource); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("exec runc: %w", syscall.Exec(runcPath, append([]string{"runc"}, args...), os.Environ()))
}

// dropSysResource takes the capability out of every set of a process (the
// runtime specification's config.md, "process").
func dropSysResource(process map[string]any) {
	sets, _ := process["capabilities"].(map[string]any)
	for name, set := range sets {
		if list, ok := set.([]any); ok {
			sets[name] = slices.DeleteFunc(list, func(c any) bool { return c == "CAP_SYS_RESOURCE" })
		}
	}
}

func editJSON(path string, edit func(map[string]any)) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read bundle: %w", err)
	}
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber() // memory limits do not fit in a float64
	if err := decoder.Decode(&object); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	edit(object)
	if content, err = json.Marshal(object); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}
