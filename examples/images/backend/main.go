// Backend is what the frontends call by its name in the cluster. It is also the
// example's way to make a request inside the cluster, since its image holds
// nothing else:
//
//	kubectl exec deploy/backend -- /app get http://frontend-v1
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"berth.dev/examples/internal/web"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "get" {
		os.Exit(get(os.Args[2]))
	}
	http.Handle("/", web.Page(web.Text("hello from the backend in the cluster")))
	os.Exit(web.Serve(":8080", http.DefaultServeMux))
}

// get prints what url answers, over a connection of its own.
func get(url string) int {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if resp.StatusCode >= 400 {
		fmt.Fprintln(os.Stderr, resp.Status)
		return 1
	}
	return 0
}
