package vhostuser

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A descriptor: an address, a length, flags, and the index of the next.
const (
	descBytes = 16

	descNext     = 1
	descWrite    = 2 // the device writes there
	descIndirect = 4
)

// errChain says that a request's descriptors do not hold together.
var errChain = errors.New("descriptors do not hold together")

// chain is one request's memory: what the device may read, then what it may write.
type chain struct {
	out, in [][]byte
}

func (c *chain) reset() { c.out, c.in = c.out[:0], c.in[:0] }

type descriptor struct {
	addr  uint64
	bytes uint32
	flags uint16
	next  uint16
}

// descAt copies a descriptor out of its table: the guest may change it under us.
func descAt(table []byte, i uint32) descriptor {
	var p [descBytes]byte
	copy(p[:], table[i*descBytes:])
	return descriptor{le.Uint64(p[:]), le.Uint32(p[8:]), le.Uint16(p[12:]), le.Uint16(p[14:])}
}

// walk collects the request whose first descriptor is head, of a table of whole
// descriptors. It is bounded by maxChain, whatever the guest changes meanwhile.
func (c *chain) walk(m *memory, table []byte, head uint16) error {
	c.reset()
	count := uint32(len(table) / descBytes)
	i, indirect := uint32(head), false
	for range maxChain {
		if i >= count {
			return fmt.Errorf("%w: descriptor %d of %d", errChain, i, count)
		}
		d := descAt(table, i)
		if d.flags&descIndirect != 0 {
			if indirect || d.flags&descNext != 0 || d.bytes == 0 || d.bytes%descBytes != 0 || d.bytes > maxChain*descBytes {
				return fmt.Errorf("%w: table of descriptors of %d bytes, flags %#x", errChain, d.bytes, d.flags)
			}
			parts, ok := m.appendGuest(nil, d.addr, d.bytes)
			if !ok || len(parts) != 1 {
				return fmt.Errorf("%w: table of descriptors at %#x", errChain, d.addr)
			}
			table, count, i, indirect = parts[0], d.bytes/descBytes, 0, true
			continue
		}
		if err := c.add(m, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = uint32(d.next)
	}
	return fmt.Errorf("%w: more than %d descriptors", errChain, maxChain)
}

func (c *chain) add(m *memory, d descriptor) (err error) {
	ok := true
	if d.flags&descWrite != 0 {
		c.in, ok = m.appendGuest(c.in, d.addr, d.bytes)
	} else if len(c.in) > 0 && !invariant.Planted("vhostuser/any-order") {
		return fmt.Errorf("%w: one to read behind one to write", errChain)
	} else {
		c.out, ok = m.appendGuest(c.out, d.addr, d.bytes)
	}
	if !ok {
		return fmt.Errorf("%w: [%#x, +%d] is not the guest's memory", errChain, d.addr, d.bytes)
	}
	if len(c.out)+len(c.in) > 2*maxChain {
		return fmt.Errorf("%w: more than %d pieces", errChain, 2*maxChain)
	}
	return nil
}

func total(parts [][]byte) (n int64) {
	for _, p := range parts {
		n += int64(len(p))
	}
	return n
}

// take copies the first bytes of parts to p, and returns what is left; false: there are
// not so many.
func take(parts [][]byte, p []byte) ([][]byte, bool) {
	for len(p) > 0 {
		if len(parts) == 0 {
			return parts, false
		}
		n := copy(p, parts[0])
		p = p[n:]
		if n == len(parts[0]) {
			parts = parts[1:]
		} else {
			parts[0] = parts[0][n:]
		}
	}
	return parts, true
}

// scatter copies p over parts, which are at least as long, and returns what is left of them.
func scatter(parts [][]byte, p []byte) [][]byte {
	for len(p) > 0 {
		n := copy(parts[0], p)
		if p = p[n:]; n < len(parts[0]) {
			parts[0] = parts[0][n:]
			break
		}
		parts = parts[1:]
	}
	return parts
}
