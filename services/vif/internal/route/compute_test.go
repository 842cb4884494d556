package route

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"berth.dev/services/vif/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func prefixes(s string) (out []netip.Prefix) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func TestCompute(t *testing.T) {
	for _, tt := range []struct{ name, include, exclude, want string }{
		{"nothing", "", "10.0.0.0/8", ""},
		{"plain", "10.96.0.0/12 10.244.0.0/16", "", "10.96.0.0/12 10.244.0.0/16"},
		{"nested include is one", "10.96.0.0/12 10.97.0.0/16", "", "10.96.0.0/12"},
		{"adjacent halves are one", "10.0.0.0/9 10.128.0.0/9", "", "10.0.0.0/8"},
		{"host cut out", "10.0.0.0/30", "10.0.0.1/32", "10.0.0.0/32 10.0.0.2/31"},
		{"also-proxy inside never-proxy", "10.0.0.0/8 10.1.2.0/24", "10.1.0.0/16",
			"10.0.0.0/16 10.1.2.0/24 10.2.0.0/15 10.4.0.0/14 10.8.0.0/13 10.16.0.0/12 10.32.0.0/11 10.64.0.0/10 10.128.0.0/9"},
		{"same prefix: never wins", "10.0.0.0/8", "10.0.0.0/8", ""},
		{"never-proxy around it does not matter", "10.96.0.0/12", "0.0.0.0/0", "10.96.0.0/12"},
		{"unmasked", "10.96.3.4/12", "", "10.96.0.0/12"},
		{"families apart", "fd00::/8 10.0.0.0/8", "::/0", "10.0.0.0/8 fd00::/8"},
		{"IPv6 host cut out", "fd00::/126", "fd00::2/128", "fd00::/127 fd00::3/128"},
		{"everything", "0.0.0.0/0", "", "0.0.0.0/1 128.0.0.0/1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Compute(Rules{prefixes(tt.include), prefixes(tt.exclude)})
			if want := prefixes(tt.want); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// Against the definition: for each address, the longest rule decides.
func TestComputeAgainstDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(4)), byte(r.IntN(256))})
		return netip.PrefixFrom(a, 20+r.IntN(13)).Masked()
	}
	for range 300 {
		var rules Rules
		for range r.IntN(6) {
			rules.Include = append(rules.Include, random())
		}
		for range r.IntN(6) {
			rules.Exclude = append(rules.Exclude, random())
		}
		got := Compute(rules)
		for range 200 {
			a := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(4)), byte(r.IntN(256))})
			best, want := -1, false
			for _, p := range rules.Include {
				if p.Contains(a) && p.Bits() > best {
					best, want = p.Bits(), true
				}
			}
			for _, p := range rules.Exclude {
				if p.Contains(a) && p.Bits() >= best {
					best, want = p.Bits(), false
				}
			}
			if is := slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Contains(a) }); is != want {
				t.Fatalf("%v under %+v: routed %v, want %v (routes %v)", a, rules, is, want, got)
			}
		}
	}
}
