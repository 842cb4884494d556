package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// webSocket has n messages come back from an echo server, of both kinds, of 0 bytes
// to 2 MB, in one frame and in many, with pings between them; then both ends close
// as the protocol says.
func webSocket(url, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: http.Header{"x-dev": {"alice"}}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(4 << 20)
	for i := range n {
		sent := make([]byte, 1<<(i%22)-1) // 0 to 2 MiB - 1
		_, _ = rand.Read(sent)
		kind := websocket.MessageBinary
		if i%3 == 0 {
			kind, sent = websocket.MessageText, bytes.Repeat([]byte("é"), len(sent)/2)
		}
		wrote := make(chan error, 1)
		go func() { // the echo of a large one comes while it is sent
			if err := c.Ping(ctx); err != nil { // the pong is taken by the reader below
				wrote <- err
				return
			}
			wrote <- message(ctx, c, kind, sent, i%2 == 0)
		}()
		gotKind, got, err := c.Read(ctx)
		if err != nil {
			return fmt.Errorf("read message %d: %w", i, err)
		}
		if err := <-wrote; err != nil {
			return fmt.Errorf("write message %d: %w", i, err)
		}
		if gotKind != kind || !bytes.Equal(got, sent) {
			return fmt.Errorf("message %d: %v of %d bytes came back as %v of %d", i, kind, len(sent), gotKind, len(got))
		}
	}
	return c.Close(websocket.StatusNormalClosure, "")
}

// message sends one, in one frame or in several.
func message(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, b []byte, whole bool) error {
	if whole {
		return c.Write(ctx, kind, b)
	}
	w, err := c.Writer(ctx, kind)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(b, 10_000) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return w.Close()
}
