package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ctl": func() { os.Exit(run(context.Background(), os.Args[1:])) },
	})
}

// The command line as users type it, each script with no kubeconfig and no home
// of its own, and with a Docker Engine only where it says so.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exitcode": exitcode},
		Setup: func(e *testscript.Env) error {
			e.Setenv("DOCKER_HOST", "unix://"+e.WorkDir+"/no.sock")
			e.Setenv("REAL_DOCKER_HOST", os.Getenv("DOCKER_HOST"))
			e.Setenv("BERTH_WORKSPACE", "test-script")
			return nil
		},
	})
}

// exitcode N command... runs a command that has to exit with N.
func exitcode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N command...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		got = ee.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if want := args[0]; strconv.Itoa(got) != want {
		ts.Fatalf("exit code %d, want %s", got, want)
	}
}
