package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"berth.dev/bus/event"
)

// Short is a fact's name: runner.handler-created of
// dev.berth.engagement.runner.handler-created.v1.
func Short(e event.Envelope) string {
	parts := strings.Split(e.Type, ".")
	if len(parts) != 6 {
		return e.Type
	}
	return parts[3] + "." + parts[4]
}

// Scope is what a fact is about: connection, engagement or installation.
func Scope(e event.Envelope) string {
	parts := strings.Split(e.Type, ".")
	if len(parts) != 6 {
		return ""
	}
	return parts[2]
}

// Line is a fact on one line, for people.
func Line(e event.Envelope) string {
	return fmt.Sprintf("%s  %-12s %-14s %-26s %s", e.Time.Local().Format("15:04:05.000"), Scope(e), e.Subject, Short(e), summary(e.Data))
}

// summary is a fact's data as key=value, in its own order.
func summary(data json.RawMessage) string {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return string(data)
	}
	var out []string
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			break
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			break
		}
		s := string(v)
		var plain string
		if json.Unmarshal(v, &plain) == nil {
			s = plain
			if strings.ContainsAny(s, " \t\n") || s == "" {
				s = string(v)
			}
		}
		out = append(out, fmt.Sprintf("%v=%s", key, s))
	}
	return strings.Join(out, " ")
}
