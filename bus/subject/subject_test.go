package subject_test

import (
	"strings"
	"testing"

	"berth.dev/bus/subject"
)

func TestValid(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "a-1": true, "0": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "*": false, ">": false,
		"a b": false, "a_b": false, "ä": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if subject.Valid(s) != want {
			t.Errorf("Valid(%q) = %v", s, !want)
		}
	}
}

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		subject.Command(subject.Runner, "daemon-start"):                     "berth.v1.cmd.runner.daemon-start",
		subject.CommandTo(subject.VIF, "engage", "c1"):                      "berth.v1.cmd.vif.engage.c1",
		subject.Fact(subject.Engagement, "e1", subject.Connector, "active"): "berth.v1.evt.engagement.e1.connector.active",
		subject.FactsOf(subject.Connection, "c1"):                           "berth.v1.evt.connection.c1.>",
		subject.Output("e1", subject.Runner, "stdout"):                      "berth.v1.out.engagement.e1.runner.stdout",
		subject.OutputOf("e1"):                                              "berth.v1.out.engagement.e1.>",
		subject.Live(subject.Ctl, "x1"):                                     "berth.v1.live.ctl.x1",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestABadTokenPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"empty":    func() { subject.Command(subject.Runner, "") },
		"wildcard": func() { subject.FactsOf(subject.Engagement, "*") },
		"dots":     func() { subject.Output("a.b", subject.Runner, "stdout") },
		"all":      func() { subject.Live(subject.Ctl, ">") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: formatted a subject", name)
				}
			}()
			f()
		}()
	}
}

func TestParse(t *testing.T) {
	e, s, stream, err := subject.ParseOutput(subject.Output("e1", subject.Runner, "stderr"))
	if e != "e1" || s != subject.Runner || stream != "stderr" || err != nil {
		t.Error(e, s, stream, err)
	}
	for _, bad := range []string{"", "berth.v1.evt.engagement.e1.runner", "berth.v1.evt.engagement.e1.runner.x.y", "berth.v1.evt.engagement.e1.runner.*", "x.v1.evt.engagement.e1.runner.x"} {
		if p, err := subject.ParseFact(bad); err == nil {
			t.Errorf("ParseFact(%q) = %+v", bad, p)
		}
		if _, _, _, err := subject.ParseOutput(bad); err == nil {
			t.Errorf("ParseOutput(%q) passed", bad)
		}
	}
}
