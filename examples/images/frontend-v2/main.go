// Frontend-v2 is the improved frontend-v1, still on the developer's machine.
package main

import (
	"net/http"
	"os"

	"berth.dev/examples/internal/web"
)

func main() {
	http.Handle("/", web.Page(
		web.Text("frontend v2"),
		web.File("page", "/page.txt"),
		web.Get("backend", os.Getenv("BACKEND_URL")),
		web.Env("GREETING"),
		web.Env("POD_NAME"),
	))
	os.Exit(web.Serve(":8080", http.DefaultServeMux))
}
