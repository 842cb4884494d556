// Package web is what the example's programs share: a server that stops when it
// is told to, and a page made of lines.
package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Serve answers on addr (host:port) until SIGINT or SIGTERM, then finishes what
// is under way. It returns the process's exit code.
func Serve(addr string, h http.Handler) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.ListenAndServe() }()
	fmt.Printf("listening on %s\n", addr)
	select {
	case err := <-done:
		fmt.Fprintln(os.Stderr, err)
		return 1
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Page answers with lines, each made anew for the request.
func Page(lines ...func(*http.Request) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		for _, l := range lines {
			fmt.Fprintln(w, l(r))
		}
	})
}

// Text is a line that is always the same.
func Text(s string) func(*http.Request) string { return func(*http.Request) string { return s } }

// Env is a line that shows an environment variable.
func Env(name string) func(*http.Request) string {
	return func(*http.Request) string { return name + "=" + os.Getenv(name) }
}

// File is a line that shows the first line of a file, or why it cannot be read.
func File(label, path string) func(*http.Request) string {
	return func(*http.Request) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return label + ": " + err.Error()
		}
		first, _, _ := strings.Cut(string(b), "\n")
		return label + ": " + first
	}
}

// Get is a line that shows what url answers, or why it does not.
func Get(label, url string) func(*http.Request) string {
	client := &http.Client{Timeout: 5 * time.Second}
	return func(r *http.Request) string {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
		if err != nil {
			return label + ": " + err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return label + ": " + err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if err != nil {
			return label + ": " + err.Error()
		}
		return label + ": " + strings.TrimSpace(string(b))
	}
}
