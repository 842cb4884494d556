package build

import (
	"encoding/json"
	"fmt"

	"berth.dev/bus/buildstream"
)

func receiveHello(conn *buildstream.Conn) (buildstream.Hello, error) {
	var h buildstream.Hello
	f, err := conn.Receive()
	if err != nil {
		return h, fmt.Errorf("receive a caller's greeting: %w", err)
	}
	if f.Kind != buildstream.KindHello {
		return h, fmt.Errorf("receive a caller's greeting: a frame of kind %d is none", f.Kind)
	}
	if err := json.Unmarshal(f.Payload, &h); err != nil {
		return h, fmt.Errorf("receive a caller's greeting: it is not the JSON of one") // err may quote secrets
	}
	return h, nil
}
