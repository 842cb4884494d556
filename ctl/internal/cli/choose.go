package cli

import (
	"strings"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

func connectionNames(all []command.Connection) []string {
	var n []string
	for _, c := range all {
		n = append(n, c.Name)
	}
	return n
}

// choose is the connection to use: the one that use names, by name or id, or the
// only one. An ambiguous choice is wrong usage that lists what there is.
func choose(all []command.Connection, use string) (command.Connection, error) {
	var none command.Connection
	if use != "" {
		for _, c := range all {
			if c.Name == use || c.ID == use {
				return c, nil
			}
		}
		if len(all) == 0 {
			return none, fault.New(fault.InvalidArgument, "ctl connect --docker --name "+use, "there is no connection %q, nor any other", use)
		}
		return none, fault.New(fault.InvalidArgument, "--use "+all[0].Name, "there is no connection %q; there are: %s", use, strings.Join(connectionNames(all), ", "))
	}
	switch len(all) {
	case 0:
		return none, fault.New(fault.FailedPrecondition, "ctl connect --docker", "not connected")
	case 1:
		return all[0], nil
	}
	return none, fault.New(fault.InvalidArgument, "--use "+all[0].Name, "several connections exist, choose one: %s", strings.Join(connectionNames(all), ", "))
}

// chooseEngagement is the one that name means: an id, a name, or [kind/]name of a
// workload of which only one container is engaged.
func chooseEngagement(all []command.Engagement, name string) (command.Engagement, error) {
	var found []command.Engagement
	for _, e := range all {
		if e.ID == name || e.Name == name {
			return e, nil
		}
		if lease.Names(name, e.WorkloadKind, e.Workload) || strings.HasPrefix(e.Name, name+"/") {
			found = append(found, e)
		}
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		names = nil
		for _, e := range found {
			names = append(names, e.Name+" ("+e.ID+")")
		}
		return command.Engagement{}, fault.New(fault.InvalidArgument, "ctl leave "+found[0].ID, "%q is several engagements, choose one: %s", name, strings.Join(names, ", "))
	case len(all) == 0:
		return command.Engagement{}, fault.New(fault.NotFound, "ctl status", "there is no engagement %q, nor any other", name)
	}
	return command.Engagement{}, fault.New(fault.NotFound, "ctl leave "+names[0], "there is no engagement %q; there are: %s", name, strings.Join(names, ", "))
}

// onlyOf are the engagements of the connection that use names; all if it is empty.
func onlyOf(all []command.Engagement, connections []command.Connection, use string) ([]command.Engagement, error) {
	if use == "" {
		return all, nil
	}
	c, err := choose(connections, use)
	if err != nil {
		return nil, err
	}
	var of []command.Engagement
	for _, e := range all {
		if e.Connection == c.ID {
			of = append(of, e)
		}
	}
	return of, nil
}
