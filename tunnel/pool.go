package tunnel

import "sync"

// chunk is a pooled buffer whose bytes [r:w] are payload. A chunk to send has
// its payload after frameHeaderSize bytes of room, so that header and payload
// leave in one piece.
type chunk struct {
	buf    []byte
	r, w   int
	packet bool // to be sent as a PACKET frame
}

func (c *chunk) len() int { return c.w - c.r }

// pool hands out chunks of three sizes, so that an idle or chatty stream does
// not pin 64 KiB. One per session.
type pool struct{ classes [3]sync.Pool }

const (
	smallChunk  = 4 << 10
	mediumChunk = 16 << 10
	bigChunk    = 64 << 10
)

func classOf(n int) (class, size int) {
	switch {
	case n <= smallChunk:
		return 0, smallChunk
	case n <= mediumChunk:
		return 1, mediumChunk
	}
	return 2, bigChunk
}

// get returns an empty chunk with room for n bytes, at most bigChunk.
func (p *pool) get(n int) *chunk {
	class, size := classOf(n)
	if c, ok := p.classes[class].Get().(*chunk); ok {
		c.r, c.w, c.packet = 0, 0, false
		return c
	}
	return &chunk{buf: make([]byte, size)}
}

// getSend returns an empty chunk with room for a frame of n bytes of payload.
func (p *pool) getSend(n int) *chunk {
	c := p.get(n + frameHeaderSize)
	c.r, c.w = frameHeaderSize, frameHeaderSize
	return c
}

func (p *pool) put(c *chunk) {
	class, _ := classOf(len(c.buf))
	p.classes[class].Put(c)
}
