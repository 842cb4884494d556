package cli

import (
	"context"
	"slices"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/render"
	"berth.dev/ctl/internal/until"
	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

type eventsFlags struct {
	since      string
	engagement string
	connection string
	until      string
	noFollow   bool
}

func (a *App) eventsCommand() *usage.Command {
	f := &eventsFlags{}
	c := &usage.Command{
		Name: "events", Synopsis: "events [flags]",
		Short: "Replay and follow what happens.",
		Long: `Facts are printed from --since on, then as they are stated, until Ctrl-C, --until,
or the end of the engagement given. With --output json each line is a CloudEvent.

--until takes the name of a fact (active, ended, engagement.ended) or an expression
over fact, scope, service, type, subject, time and data. Exit code 0 when it came
true, 1 when the facts ended without.`,
		Examples: []string{
			"ctl events",
			"ctl events --since 10m --output json",
			"ctl events --engagement frontend --until active",
			`ctl events --until 'fact == "health-changed" && !data.healthy'`,
			"ctl events --no-follow --engagement frontend",
		},
		Flags: a.flags("events"),
	}
	fs := c.Flags
	fs.StringVar(&f.since, "since", "start", "`WHEN` to begin: start, now, a duration ago (10m), or a time (RFC 3339)")
	fs.StringVar(&f.engagement, "engagement", "", "`NAME` or id of the engagement to show alone")
	fs.StringVar(&f.connection, "connection", "", "`NAME` or id of the connection to show alone, with its engagements")
	fs.StringVar(&f.until, "until", "", "`EXPR` that ends the command once a fact fulfils it")
	fs.BoolVar(&f.noFollow, "no-follow", false, "end when history has been replayed")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("events", l); err != nil {
			return err
		}
		if f.connection == "" {
			f.connection = a.use
		}
		return a.events(ctx, f)
	})
	return c
}

func (a *App) events(ctx context.Context, f *eventsFlags) error {
	from, err := since(f.since, time.Now())
	if err != nil {
		return err
	}
	cond, err := until.Parse(f.until)
	if err != nil {
		return err
	}
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	// History is read from its beginning where a name is to be understood: the
	// fact that ties names to ids is the first about an engagement.
	start := from
	if f.engagement != "" || f.connection != "" {
		start = time.Time{}
	}
	tail, err := s.conn.TailFacts(ctx, start, subject.AllFacts)
	if err != nil {
		return err
	}
	defer tail.Stop()
	if f.noFollow && tail.Pending == 0 {
		return f.missed()
	}
	pick := newPicker(f.engagement, f.connection, from)
	met := false
	err = busclient.Follow(ctx, s.conn, tail, func(e event.Envelope) (bool, error) {
		if pick.takes(e) && !e.Time.Before(from) {
			if a.print.JSON {
				a.print.Fact(e)
			} else {
				a.print.Result("%s", render.Line(e))
			}
			ok, err := cond.Met(e)
			if err != nil {
				return true, err
			}
			if met = ok; met {
				return true, nil
			}
		}
		return tail.Pending == 0 && (f.noFollow || pick.over()), nil
	})
	switch {
	case interrupt.Is(ctx):
		return exit(interrupt.ExitCode)
	case err != nil:
		return err
	case met || f.until == "":
		return nil
	}
	return f.missed()
}

// missed is the error of facts that ended without --until having come true.
func (f *eventsFlags) missed() error {
	if f.until == "" {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "ctl events --no-follow", "the facts ended, and --until %s has not come true", f.until)
}

// since reads --since; the zero time is the beginning.
func since(s string, now time.Time) (time.Time, error) {
	switch s {
	case "", "start":
		return time.Time{}, nil
	case "now":
		return now, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, fault.New(fault.InvalidArgument, "ctl events --since 10m", "--since %q is neither start, now, a duration nor a time as 2006-01-02T15:04:05Z", s)
}

// picker picks the facts about an engagement or a connection that is named. It
// learns what a name stands for from the facts themselves, so that what is only
// coming, or is long over, can be named too.
type picker struct {
	engagement, connection string
	ids                    map[string]bool // picked
	open                   map[string]bool // picked engagements that have not ended
	from                   time.Time       // what ended before is not what is waited for
	ended                  bool            // a picked one has ended since
}

func newPicker(engagement, connection string, from time.Time) *picker {
	return &picker{engagement: engagement, connection: connection, ids: map[string]bool{}, open: map[string]bool{}, from: from}
}

func (p *picker) takes(e event.Envelope) bool {
	if c, ok := event.Decode[event.ConnectionRequested](e); ok && p.connection == c.Name {
		p.ids[e.Subject] = true
	}
	if r, ok := event.Decode[event.EngagementRequested](e); ok {
		if p.isEngagement(e.Subject, r) && p.inConnection(r.Connection) {
			p.ids[e.Subject], p.open[e.Subject] = true, true
		}
	}
	switch {
	case p.engagement == "" && p.connection == "":
		return true
	case p.engagement == "" && e.Subject == p.connection:
		return true
	case p.engagement != "" && render.Scope(e) != string(subject.Engagement):
		return false
	}
	if event.Terminal(e) && p.open[e.Subject] {
		delete(p.open, e.Subject)
		p.ended = p.ended || !e.Time.Before(p.from)
	}
	return p.ids[e.Subject]
}

func (p *picker) isEngagement(id string, r event.EngagementRequested) bool {
	return slices.Contains([]string{"", id, r.Name}, p.engagement) || lease.Names(p.engagement, r.WorkloadKind, r.Workload)
}

func (p *picker) inConnection(id string) bool {
	return p.connection == "" || p.connection == id || p.ids[id]
}

// over reports whether the engagement that was named has ended.
func (p *picker) over() bool { return p.ended && len(p.open) == 0 }
