package user

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// In a child, since there is no way back.
func TestMain(m *testing.M) {
	if who := os.Getenv("BERTH_TEST_BECOME"); who != "" {
		if err := Become(who); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		threads, err := filepath.Glob("/proc/self/task/*/status")
		if err != nil {
			panic(err)
		}
		for _, f := range threads {
			b, err := os.ReadFile(f)
			if err != nil {
				panic(err)
			}
			for _, l := range strings.Split(string(b), "\n") {
				if strings.HasPrefix(l, "Uid:") || strings.HasPrefix(l, "Gid:") || strings.HasPrefix(l, "CapEff:") || strings.HasPrefix(l, "CapPrm:") {
					fmt.Println(l)
				}
			}
		}
		return
	}
	os.Exit(m.Run())
}

func TestBecome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("%s needs root", t.Name())
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BERTH_TEST_BECOME=1234:5678")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 8 { // two threads at least
		t.Fatalf("%s", out)
	}
	for _, l := range lines {
		f := strings.Fields(l)
		want := map[string]string{"Uid:": "1234", "Gid:": "5678", "CapEff:": "0000000000001000", "CapPrm:": "0000000000001000"}[f[0]]
		for _, got := range f[1:] {
			if got != want {
				t.Errorf("%s, want %s throughout", l, want)
			}
		}
	}
	for _, bad := range []string{"", "1000", "root:root", "-1:0", "1:x"} {
		if Become(bad) == nil {
			t.Errorf("became %q", bad)
		}
	}
}
