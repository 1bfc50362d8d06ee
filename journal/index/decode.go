package index

import (
	"encoding/binary"

	"github.com/holdfast-dr/holdfast/journal/segment"
)

func segmentPos(v uint64) segment.Pos { return segment.Pos(v) }

func (d *decoder) uvarint() uint64 {
	if len(d.p) > 0 && d.p[0] < 0x80 {
		v := d.p[0]
		d.p = d.p[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.p)
	if n <= 0 {
		d.bad, d.p = true, nil
		return 0
	}
	d.p = d.p[n:]
	return v
}

func (d *decoder) varint() int64 {
	v := d.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) u16() uint16 {
	if len(d.p) < 2 {
		d.bad, d.p = true, nil
		return 0
	}
	v := le.Uint16(d.p)
	d.p = d.p[2:]
	return v
}

func (d *decoder) fixed32() uint32 {
	if len(d.p) < 4 {
		d.bad, d.p = true, nil
		return 0
	}
	v := le.Uint32(d.p)
	d.p = d.p[4:]
	return v
}
