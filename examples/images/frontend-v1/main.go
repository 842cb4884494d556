// Frontend-v1 is the program that runs in the cluster.
package main

import (
	"net/http"
	"os"

	"berth.dev/examples/internal/web"
)

func main() {
	http.Handle("/", web.Page(
		web.Text("frontend v1"),
		web.Get("backend", os.Getenv("BACKEND_URL")),
		web.Env("GREETING"),
	))
	os.Exit(web.Serve(":8080", http.DefaultServeMux))
}
