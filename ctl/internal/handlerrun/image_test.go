package handlerrun

import (
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"
)

func TestInteractive(t *testing.T) {
	for args, want := range map[string]bool{"": false, "IMAGE -it": false, "-it IMAGE": true, "-e -i IMAGE": false, "--rm -i IMAGE sh": true, "--tty IMAGE": true, "-itd IMAGE": true} {
		if got, err := Interactive(strings.Fields(args)); got != want || err != nil {
			t.Errorf("%s: %v, %v", args, got, err)
		}
	}
}

func TestWithImage(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "sha256:1"},
		{"IMAGE", "sha256:1"},
		{"-it -e A=b --name x IMAGE", "-it -e A=b --name x sha256:1"},
		{"--name IMAGE IMAGE IMAGE --flag IMAGE", "--name IMAGE sha256:1 IMAGE --flag IMAGE"},
		{"-e IMAGE IMAGE -c x", "-e IMAGE sha256:1 -c x"},
		{"-- IMAGE x", "-- sha256:1 x"},
		{"other IMAGE", ""},
		{"-it", ""},
		{"--name IMAGE", ""},
		{"image", ""},
		{"--no-such-flag IMAGE", ""},
	} {
		args := strings.Fields(c.args)
		before := slices.Clone(args)
		got, err := WithImage(args, "sha256:1")
		if c.want == "" {
			if fault.CodeOf(err) != fault.InvalidArgument {
				t.Errorf("%s: %q, %v", c.args, got, err)
			}
		} else if strings.Join(got, " ") != c.want || err != nil {
			t.Errorf("%s: %q, %v, want %s", c.args, got, err, c.want)
		}
		if !slices.Equal(args, before) {
			t.Errorf("%s: the arguments were changed to %q", c.args, args)
		}
	}
}
