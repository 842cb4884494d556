// Command puppet runs in the steps of the tests' builds, since those start FROM
// scratch: it prints, waits, writes or fails as it is told.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	for i := 1; i+1 < len(os.Args); i += 2 {
		switch arg := os.Args[i+1]; os.Args[i] {
		case "print":
			fmt.Println(arg)
		case "sleep":
			d, _ := time.ParseDuration(arg)
			time.Sleep(d)
		case "cat":
			b, err := os.ReadFile(arg)
			fmt.Printf("%s %v\n", b, err)
		case "exit":
			n, _ := strconv.Atoi(arg)
			os.Exit(n)
		}
	}
}
