package bus

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
)

// Hold answers on the presence subject of id until the returned function is
// called or the process ends. When it returns, whoever asks finds the holder.
// See subject.Live.
func (c *Conn) Hold(s subject.Service, id string) (release func(), err error) {
	live := subject.Live(s, id)
	c.serves.Store(true)
	sub, err := c.NC.Subscribe(live, func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", id, err)
	}
	if err := c.settle(live); err != nil {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("hold %s: %w", id, err)
	}
	return func() {
		_ = sub.Unsubscribe()
		_ = c.NC.Flush() // so that Gone is true from here on
	}, nil
}

// Gone reports whether the holder of a presence subject is proven to be gone.
// No answer in time proves nothing and is false. ctx needs a deadline, or a
// stopped holder is waited for as long.
func (c *Conn) Gone(ctx context.Context, live string) bool {
	_, err := c.NC.RequestWithContext(ctx, live, nil)
	return errors.Is(err, nats.ErrNoResponders)
}
