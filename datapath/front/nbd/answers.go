package nbd

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// receive takes answers in until the connection ends, and then fails all calls.
func (c *Client) receive() {
	err := c.answer()
	for err == nil {
		err = c.answer()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // it is never the server's part to say goodbye
	}
	c.lose(err)
	c.out.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.mu.flying {
		if k != nil {
			c.mu.flying[i] = nil
			k.err = c.mu.err
			k.finish()
		}
	}
}

// answer takes in one reply, or one chunk of one. An error ends the connection.
func (c *Client) answer() error {
	p, err := c.h.in.next(simpleBytes)
	if err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(p) {
	case magicSimple:
		return c.simple(binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint32(p[4:]))
	case magicStructured:
		flags, kind := binary.BigEndian.Uint16(p[4:]), binary.BigEndian.Uint16(p[6:])
		cookie := binary.BigEndian.Uint64(p[8:])
		if p, err = c.h.in.next(structBytes - simpleBytes); err != nil {
			return err
		}
		return c.chunk(cookie, flags, kind, int(binary.BigEndian.Uint32(p)))
	default:
		return fmt.Errorf("reply: %w", errMagic)
	}
}

func (c *Client) simple(cookie uint64, code uint32) error {
	k, err := c.flying(cookie)
	if err != nil {
		return err
	}
	structuredOnly := k.cmd == cmdRead || k.cmd == cmdBlockStatus
	if c.h.structured && structuredOnly {
		return fmt.Errorf("%w: simple reply to a %s", errImpolite, cmdNames[k.cmd])
	}
	k.code = code
	if k.cmd == cmdRead && code == wireOK {
		if err := c.payload(k, k.p); err != nil {
			return err
		}
	}
	return c.answered(k)
}

// chunk takes in a chunk of a structured reply, n bytes after its header.
func (c *Client) chunk(cookie uint64, flags, kind uint16, n int) error {
	k, err := c.flying(cookie)
	if err != nil {
		return err
	}
	switch {
	case !c.h.structured:
		err = fmt.Errorf("%w: structured reply not asked for", errImpolite)
	case kind == chunkNone && n == 0 && flags&chunkDone != 0:
	case kind == chunkData && k.cmd == cmdRead && n > 8:
		err = c.data(k, n)
	case kind == chunkHole && k.cmd == cmdRead && n == 12:
		err = c.hole(k)
	case kind == chunkBlockStatus && k.cmd == cmdBlockStatus && n >= 12 && n%8 == 4 && n <= maxChunk:
		err = c.status(k, (n-4)/8)
	case kind&(1<<15) != 0 && n >= 6 && n <= receiveBytes:
		err = c.failure(k, n)
	default:
		err = fmt.Errorf("%w: chunk of kind %#x and %d bytes to a %s", errImpolite, kind, n, cmdNames[k.cmd])
	}
	if err != nil || flags&chunkDone == 0 {
		return err
	}
	return c.answered(k)
}

// part returns the n bytes at off of what k reads.
func (k *call) part(off uint64, n int) ([]byte, error) {
	at := off - uint64(k.off) // wraps round when too low
	if at > uint64(len(k.p)) || uint64(n) > uint64(len(k.p))-at {
		return nil, fmt.Errorf("%w: %d bytes at %d do not belong to the read", errImpolite, n, off)
	}
	return k.p[at:][:n], nil
}

func (c *Client) data(k *call, n int) error {
	p, err := c.h.in.next(8)
	if err != nil {
		return err
	}
	part, err := k.part(binary.BigEndian.Uint64(p), n-8)
	if err != nil {
		return err
	}
	return c.payload(k, part)
}

// payload receives straight into what the caller of a read gave.
func (c *Client) payload(k *call, p []byte) error {
	k.bufs[0] = p
	k.got += len(p)
	return c.h.in.fill(k.bufs[:])
}

func (c *Client) hole(k *call) error {
	p, err := c.h.in.next(12)
	if err != nil {
		return err
	}
	part, err := k.part(binary.BigEndian.Uint64(p), int(binary.BigEndian.Uint32(p[8:])))
	clear(part)
	k.got += len(part)
	return err
}

// status takes in a context's number and count extents.
func (c *Client) status(k *call, count int) error {
	p, err := c.h.in.next(4)
	if err != nil {
		return err
	}
	ours := binary.BigEndian.Uint32(p) == c.h.contextID
	for range count {
		if p, err = c.h.in.next(8); err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint32(p))
		if n == 0 {
			return fmt.Errorf("%w: extent of no bytes", errImpolite)
		}
		if ours {
			k.extents = append(k.extents, extent{n, binary.BigEndian.Uint32(p[4:])&c.h.hole != 0})
		}
	}
	return nil
}

func (c *Client) failure(k *call, n int) error {
	p, err := c.h.in.next(n)
	if err != nil {
		return err
	}
	k.code = max(binary.BigEndian.Uint32(p), 1)
	if text := p[6:]; int(binary.BigEndian.Uint16(p[4:])) <= len(text) {
		k.text = clip(string(text[:binary.BigEndian.Uint16(p[4:])]))
	}
	return nil
}

// flying returns the call that an answer is for.
func (c *Client) flying(cookie uint64) (*call, error) {
	slot := cookie & (1<<32 - 1)
	if slot < maxCalls {
		c.mu.Lock()
		k := c.mu.flying[slot]
		c.mu.Unlock()
		if k != nil && k.cookie == cookie {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%w: answer to request %#x, which is not under way", errImpolite, cookie)
}

// answered ends a call, once the answer is seen to be whole.
func (c *Client) answered(k *call) error {
	if k.code == wireOK {
		if k.cmd == cmdRead && k.got != len(k.p) && !invariant.Planted("nbd/short-read") {
			return fmt.Errorf("%w: %d of %d bytes", errImpolite, k.got, len(k.p))
		}
		if k.cmd == cmdBlockStatus && len(k.extents) == 0 {
			return fmt.Errorf("%w: block status without extents", errImpolite)
		}
	}
	c.mu.Lock()
	c.mu.flying[k.slot] = nil
	c.mu.Unlock()
	k.finish()
	return nil
}
