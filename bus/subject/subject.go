// Package subject is the only place where NATS subjects are formatted.
//
// NATS accepts an empty or malformed token without a word and then delivers
// to nobody, so every subject that Berth publishes or subscribes to comes from
// a function of this package, and those functions refuse what is not a token.
//
//	berth.v1.cmd.<service>.<verb>[.<connection>]               request-reply, in no stream
//	berth.v1.evt.<scope>.<id>.<service>.<fact>                 stream EVENTS
//	berth.v1.out.engagement.<id>.<service>.<stdout|stderr>     stream OUTPUT
//	berth.v1.out.build.<id>.builder.stdout                     stream OUTPUT
//	berth.v1.live.<service>.<id>                               presence: answered while the holder lives
//
// Commands never enter a stream: a stream that captures a command's subject
// makes the caller get JetStream's acknowledgement in the place of the answer.
package subject

import (
	"fmt"
	"strings"
)

// Root is the first two tokens of every subject.
const Root = "berth.v1"

// Wildcards that the streams capture.
const (
	AllFacts  = Root + ".evt.>"
	AllOutput = Root + ".out.>"
)

// Service names a process that owns commands or facts.
type Service string

// The services, each a process of its own.
const (
	Connector Service = "connector"
	VIF       Service = "vif"
	Builder   Service = "builder"
	Runner    Service = "runner"
	Telemount Service = "telemount"
	Ctl       Service = "ctl"
)

// Scope says what the id in a fact's subject identifies.
type Scope string

// The scopes of facts.
const (
	Connection   Scope = "connection"
	Engagement   Scope = "engagement"
	Installation Scope = "installation"
	Build        Scope = "build"
)

// Valid reports whether s may stand as one token of a subject: 1 to 63
// characters of a-z, 0-9 and '-', not starting or ending in '-'.
func Valid(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// must panics on an invalid token: tokens are constants or ids that were
// validated when they entered the process, so a bad one is a bug.
func must(tokens ...string) string {
	for _, t := range tokens {
		if !Valid(t) {
			panic(fmt.Sprintf("subject: %q is not a token", t))
		}
	}
	return strings.Join(tokens, ".")
}

// Command is the subject of a command to a service of which the workspace has one.
func Command(s Service, verb string) string {
	return Root + ".cmd." + must(string(s), verb)
}

// CommandTo is the subject of a command to the instance of a service that
// belongs to one connection (vif).
func CommandTo(s Service, verb, connection string) string {
	return Root + ".cmd." + must(string(s), verb, connection)
}

// Fact is the subject of a fact that service states about id.
func Fact(scope Scope, id string, service Service, fact string) string {
	return Root + ".evt." + must(string(scope), id, string(service), fact)
}

// FactsOf is the wildcard of all facts about id.
func FactsOf(scope Scope, id string) string {
	return Root + ".evt." + must(string(scope), id) + ".>"
}

// Output is the subject on which a container's output of one engagement rides.
func Output(engagement string, service Service, stream string) string {
	return Root + ".out.engagement." + must(engagement, string(service), stream)
}

// OutputOf is the wildcard of all output of one engagement.
func OutputOf(engagement string) string {
	return Root + ".out.engagement." + must(engagement) + ".>"
}

// BuildOutput is the subject on which the output of a build rides.
func BuildOutput(build string, stream string) string {
	return Root + ".out." + must(string(Build), build, string(Builder), stream)
}

// OutputOfBuild is the wildcard of all output of one build.
func OutputOfBuild(build string) string {
	return Root + ".out." + must(string(Build), build) + ".>"
}

// ParseOutput takes a subject made by Output or BuildOutput apart; id is that of
// the engagement or of the build.
func ParseOutput(subject string) (id string, service Service, stream string, err error) {
	t := strings.Split(subject, ".")
	if len(t) != 7 || t[0]+"."+t[1] != Root || t[2] != "out" || t[3] != string(Engagement) && t[3] != string(Build) {
		return "", "", "", fmt.Errorf("parse subject %q: not of the form %s.out.<engagement|build>.<id>.<service>.<stream>", subject, Root)
	}
	return t[4], Service(t[5]), t[6], nil
}

// Live is the subject that the holder of id answers as long as it lives. A
// request that fails with "no responders" proves that the holder is gone; one
// that times out proves nothing (a stopped process keeps its subscription).
func Live(s Service, id string) string {
	return Root + ".live." + must(string(s), id)
}

// ParsedFact is the content of a fact's subject.
type ParsedFact struct {
	Scope   Scope
	ID      string
	Service Service
	Fact    string
}

// ParseFact takes a fact's subject apart.
func ParseFact(subject string) (ParsedFact, error) {
	t := strings.Split(subject, ".")
	if len(t) != 7 || t[0]+"."+t[1] != Root || t[2] != "evt" {
		return ParsedFact{}, fmt.Errorf("parse subject %q: not of the form %s.evt.<scope>.<id>.<service>.<fact>", subject, Root)
	}
	for _, x := range t[3:] {
		if !Valid(x) {
			return ParsedFact{}, fmt.Errorf("parse subject %q: %q is not a token", subject, x)
		}
	}
	return ParsedFact{Scope(t[3]), t[4], Service(t[5]), t[6]}, nil
}
