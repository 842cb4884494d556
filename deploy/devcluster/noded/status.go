package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// report is what `noded status` prints and `devcluster status` reads.
type report struct {
	Ready      bool              `json:"ready"`
	Node       string            `json:"node"`
	Components []componentStatus `json:"components"`
	Checks     []checkStatus     `json:"checks"`
}

// serveStatus answers GET / on the node's socket with a report, fresh each time.
func serveStatus(n node, all []*component) (io.Closer, error) {
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for status: %w", err)
	}
	list := checks(n, all)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result := report{Ready: true, Node: n.describe(), Checks: runChecks(r.Context(), list)}
		for _, c := range result.Checks {
			result.Ready = result.Ready && c.Error == ""
		}
		for _, c := range all {
			result.Components = append(result.Components, c.status())
		}
		json.NewEncoder(w).Encode(result)
	})}
	go server.Serve(listener)
	return server, nil
}

func ask(ctx context.Context) (report, error) {
	var result report
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://noded/", nil)
	if err != nil {
		return result, err
	}
	err = fetch(client, request, &result)
	return result, err
}

func printStatus() error {
	result, err := ask(context.Background())
	if err != nil {
		return fmt.Errorf("ask noded: %w", err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(result)
}

// hopeless is how often a component may end before waiting for it is given up.
const hopeless = 6

// wait waits for the report to be Ready. When it gives up it names the first
// check that fails and shows the end of the log that explains it.
func wait(args []string) error {
	flags := flag.NewFlagSet("wait", flag.ContinueOnError)
	timeout := flags.Duration("timeout", 2*time.Minute, "how long to wait")
	server := flags.String("server", "", "print a kubeconfig for the apiserver at this URL")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	said := map[string]bool{}
	for began := time.Now(); ; {
		result, err := ask(ctx)
		if err == nil && result.Ready {
			break
		}
		failing := checkStatus{Name: "noded", Component: "noded"}
		if err != nil {
			failing.Error = err.Error()
		} else {
			for _, c := range result.Checks {
				if c.Error != "" {
					failing = c
					break
				}
			}
		}
		if !said[failing.Name] {
			said[failing.Name] = true
			fmt.Fprintf(os.Stderr, "%5.1f s  waiting for %s\n", time.Since(began).Seconds(), failing.Name)
		}
		for _, c := range result.Components {
			if c.Restarts >= hopeless {
				return fmt.Errorf("%s keeps ending (%s)\n%s", c.Name, c.LastExit, logTail(c.Name, 20))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %s: %s\n%s", *timeout, failing.Name, failing.Error, logTail(failing.Component, 20))
		case <-time.After(100 * time.Millisecond):
		}
	}
	if *server == "" {
		return nil
	}
	content, err := adminKubeconfig(*server)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(content)
	return err
}

// logTail is the last n lines of a component's log.
func logTail(name string, n int) string {
	path := (&component{name: name}).logFile()
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return fmt.Sprintf("the end of %s:\n  %s", path, strings.Join(lines[max(0, len(lines)-n):], "\n  "))
}
