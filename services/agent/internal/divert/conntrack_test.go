package divert

import "testing"

func TestStale(t *testing.T) {
	listening := func(p uint16) bool { return p == 15006 || p == 9091 }
	tcp, udp := Rule{Port: 8080, To: 9090}, Rule{UDP: true, Port: 53, To: 9053}
	for _, tt := range []struct {
		name           string
		e              entry
		removed, added []Rule
		want           bool
	}{
		{"one with the app, whose packets are looked at anew", entry{port: 8080, at: 8080}, nil, []Rule{tcp}, true},
		{"one with the app that has ended", entry{port: 8080, at: 8080, over: true}, nil, []Rule{tcp}, false},
		{"brought to an agent that is gone, and ended", entry{port: 8080, at: 40000, over: true}, nil, []Rule{tcp}, true},
		{"brought to an agent that is gone", entry{port: 8080, at: 40000}, nil, []Rule{tcp}, true},
		{"brought to a listener that is ending", entry{port: 8080, at: 9091}, nil, []Rule{tcp}, false},
		{"brought to a mesh's proxy", entry{port: 8080, at: 15006}, nil, []Rule{tcp}, false},
		{"brought by the rule itself", entry{port: 8080, at: 9090}, nil, []Rule{tcp}, false},
		{"another port", entry{port: 8081, at: 8081}, nil, []Rule{tcp}, false},
		{"another protocol", entry{udp: true, port: 8080, at: 8080}, nil, []Rule{tcp}, false},
		{"an open connection of a rule that ends", entry{port: 8080, at: 9090}, []Rule{tcp}, nil, false},
		{"datagrams of a rule that ends", entry{udp: true, port: 53, at: 9053}, []Rule{udp}, nil, true},
		{"datagrams of the app, of a rule that ends", entry{udp: true, port: 53, at: 53}, []Rule{udp}, nil, false},
		{"datagrams of the app, of a rule that begins", entry{udp: true, port: 53, at: 53}, nil, []Rule{udp}, true},
	} {
		if got := stale(tt.e, tt.removed, tt.added, listening); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if _, ok := parse(nil); ok {
		t.Error("parsed nothing")
	}
}
