// Package nstest runs a test binary in a network namespace of its own, so that
// tests create interfaces, routes and addresses for real and leave the machine
// alone. It is imported by tests only.
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//	func TestX(t *testing.T)    { nstest.Require(t); … }
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// marker in the environment says that the process is the child in the
// namespace, or why there is none.
const marker = "BERTH_TEST_NETNS"

const ready = "ready"

// Main runs the tests in a child process in a new network namespace whose
// loopback interface is up, and then checks for goroutines left behind. Where
// there can be no such namespace it runs them in this process, and those that
// Require one are skipped with the reason.
func Main(m *testing.M) {
	if os.Getenv(marker) != "" {
		if os.Getenv(marker) == ready {
			if err := loopback(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		goleak.VerifyTestMain(m)
		return
	}
	why := possible()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"="+why)
	if why == ready {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "start the tests in a network namespace:", err)
		os.Exit(1)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func possible() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	_ = f.Close()
	return ready
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// Require skips the test, by name and with the reason, where Main could make
// no namespace.
func Require(t testing.TB) {
	t.Helper()
	if why := os.Getenv(marker); why != ready {
		t.Skipf("%s needs a network namespace and a TUN: %s", t.Name(), why)
	}
}
