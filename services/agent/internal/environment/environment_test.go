package environment

import (
	"bytes"
	"testing"
)

func TestRead(t *testing.T) {
	got := Read([]string{"Z=1", "PATH=/bin", "MULTI=a\nb", "HOME=/", "BIN=\xff\xfe", "BERTH_AGENT_PIN=p", "A=x=y", "AB=2", "HOSTNAME=h", "HOMER=kept", "EMPTY="}, []string{"/data"})
	want := [][]byte{[]byte("A=x=y"), []byte("AB=2"), []byte("BIN=\xff\xfe"), []byte("EMPTY="), []byte("HOMER=kept"), []byte("MULTI=a\nb"), []byte("Z=1")}
	if !bytes.Equal(bytes.Join(got.Env, []byte{0}), bytes.Join(want, []byte{0})) {
		t.Errorf("got %q", got.Env)
	}
	if len(got.Mounts) != 1 || got.Mounts[0] != "/data" {
		t.Errorf("mounts %q", got.Mounts)
	}
}
