// Backend is what the frontends call by its name in the cluster.
package main

import (
	"net/http"
	"os"

	"berth.dev/examples/internal/web"
)

func main() {
	http.Handle("/", web.Page(web.Text("hello from the backend in the cluster")))
	os.Exit(web.Serve(":8080", http.DefaultServeMux))
}
