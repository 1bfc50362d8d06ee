package faultdisk

import "maps"

const chunkBytes = 4096

// content is a sparse row of bytes. Chunks are never changed once they are in it,
// so that copies share them.
type content struct {
	chunks map[int64]*[chunkBytes]byte
	size   int64
}

func newContent() content { return content{chunks: map[int64]*[chunkBytes]byte{}} }

func (c *content) clone() content { return content{maps.Clone(c.chunks), c.size} }

// read fills p from off on and returns how many bytes there were before the end.
func (c *content) read(p []byte, off int64) int {
	n := int(max(0, min(int64(len(p)), c.size-off)))
	for done := 0; done < n; {
		at := off + int64(done)
		part := p[done:min(n, done+int(chunkBytes-at%chunkBytes))]
		if chunk := c.chunks[at/chunkBytes]; chunk != nil {
			copy(part, chunk[at%chunkBytes:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return n
}

func (c *content) write(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		chunk := new([chunkBytes]byte)
		if old := c.chunks[off/chunkBytes]; old != nil {
			*chunk = *old
		}
		n := copy(chunk[off%chunkBytes:], p)
		c.chunks[off/chunkBytes] = chunk
		p, off = p[n:], off+int64(n)
	}
}

// zero makes [off, off+n) zeros within the size; whole chunks become holes.
func (c *content) zero(off, n int64) {
	end := min(off+n, c.size)
	for off < end {
		i, from := off/chunkBytes, off%chunkBytes
		to := min(chunkBytes, from+end-off)
		if old := c.chunks[i]; old != nil {
			if from == 0 && to == chunkBytes {
				delete(c.chunks, i)
			} else {
				chunk := *old
				clear(chunk[from:to])
				c.chunks[i] = &chunk
			}
		}
		off += to - from
	}
}

func (c *content) resize(size int64) {
	if size < c.size {
		c.zero(size, c.size-size)
		maps.DeleteFunc(c.chunks, func(i int64, _ *[chunkBytes]byte) bool { return i*chunkBytes >= size })
	}
	c.size = size
}

// nextData returns the first run of chunks at or after off, cut to off and size.
func (c *content) nextData(off int64) (at, n int64) {
	first := int64(-1)
	for i := range c.chunks {
		if (i+1)*chunkBytes > off && (first < 0 || i < first) {
			first = i
		}
	}
	if first < 0 || off >= c.size {
		return 0, 0
	}
	last := first
	for c.chunks[last+1] != nil {
		last++
	}
	at = max(off, first*chunkBytes)
	return at, min(c.size, (last+1)*chunkBytes) - at
}
