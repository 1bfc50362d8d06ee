package replica

import "fmt"

// Change is what a promotion puts at a place of a volume.
type Change struct {
	Off, Len int64
	Data     []byte // Len bytes; nil: zeros
	// Lost says that the bytes are known to be damaged: the blocks they touch become
	// unreadable, so that nobody takes what stands there for them.
	Lost bool
}

// op is what is done to a row of blocks.
type op struct {
	first, count int64
	kind         opKind
	data         []byte // of opData and opImage
	parts        []part // of an image that is not whole yet: what of data counts
}

type opKind uint8

const (
	opData  opKind = iota + 1 // whole blocks
	opImage                   // one block, of which the changes cover only a part
	opZero
	opLost
)

// part is a range within a block.
type part struct{ from, to int }

// planner makes of changes, in rising order, what is done to blocks.
type planner struct {
	bytes int64 // of the volume
	end   int64 // of the last change
	ops   []op
	dirty int64 // bytes in ops
	parts int   // images among ops

	open    bool // a block is being put together from several changes
	block   int64
	image   []byte
	covered []part
	lost    bool
}

// take plans one change. Its data is lent until the ops were carried out.
func (p *planner) take(c Change) error {
	if c.Off < p.end || c.Len <= 0 || c.Off > p.bytes-c.Len || c.Data != nil && int64(len(c.Data)) != c.Len {
		return fmt.Errorf("change of %d bytes at %d, of a volume of %d, after %d", c.Len, c.Off, p.bytes, p.end)
	}
	p.end = c.Off + c.Len
	for off := c.Off; off < p.end; {
		block, in := off/BlockBytes, off%BlockBytes
		if p.open && p.block != block {
			p.close()
		}
		n := (p.end - off) / BlockBytes
		if p.end == p.bytes && c.Data == nil && p.end%BlockBytes != 0 {
			n++ // the last block: nothing of the volume stands behind it
		}
		if in == 0 && n > 0 && !p.open {
			o := op{first: block, count: n, kind: opZero}
			switch {
			case c.Lost:
				o.kind = opLost
			case c.Data != nil:
				o.kind, o.data = opData, c.Data[off-c.Off:off-c.Off+n*BlockBytes]
				p.dirty += n * BlockBytes
			}
			p.ops = append(p.ops, o)
			off += n * BlockBytes
			continue
		}
		k := min(BlockBytes-in, p.end-off)
		p.put(block, int(in), int(k), c, off-c.Off)
		off += k
	}
	return nil
}

// put puts k bytes of a change into the block that is being put together.
func (p *planner) put(block int64, in, k int, c Change, from int64) {
	if !p.open {
		p.open, p.block, p.image, p.covered, p.lost = true, block, make([]byte, BlockBytes), nil, false
	}
	p.lost = p.lost || c.Lost
	if c.Data != nil {
		copy(p.image[in:in+k], c.Data[from:])
	}
	if n := len(p.covered); n > 0 && p.covered[n-1].to == in {
		p.covered[n-1].to += k
	} else {
		p.covered = append(p.covered, part{in, in + k})
	}
	if in+k == BlockBytes {
		p.close()
	}
}

// close ends the block that is being put together.
func (p *planner) close() {
	if !p.open {
		return
	}
	p.open = false
	o := op{first: p.block, count: 1, kind: opImage, data: p.image, parts: p.covered}
	whole := p.covered[0].from == 0 && int64(p.covered[0].to) == min(BlockBytes, p.bytes-p.block*BlockBytes)
	switch {
	case p.lost:
		o = op{first: p.block, count: 1, kind: opLost}
	case whole:
		o.kind, o.parts = opData, nil
	default:
		p.parts++
	}
	p.dirty += BlockBytes
	p.ops = append(p.ops, o)
}

// full says whether the ops make a cycle.
func (p *planner) full() bool { return p.parts >= maxImages-1 || p.dirty >= cycleBytes }

// taken forgets the ops, which were carried out.
func (p *planner) taken() { p.ops, p.dirty, p.parts = p.ops[:0], 0, 0 }
