package stripe

import (
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// table says what a protected file is, and what each of its blocks must be. It stands
// twice in a file of local parity, and in every shard file of a Set.
type table struct {
	Geometry
	id     Identity
	length int64 // bytes of the file that is protected
	shard  int   // which shard's file the table stands in; localShard: parity beside a file
	sums   []uint32
}

const (
	tableMagic   = 0x31455348 // "HSE1"
	tableVersion = 1

	localShard = 0xffff

	tableHeaderBytes = 80
	atMagic          = 0
	atVersion        = 4
	atK              = 6
	atM              = 7
	atGroup          = 8
	atNumber         = 16
	atLife           = 24
	atLength         = 32
	atBlock          = 40
	atCount          = 44
	atShard          = 48
	atZero           = 50
	atSumsCRC        = 72
	atHeaderCRC      = 76
)

var _ [tableHeaderBytes]byte = [atHeaderCRC + 4]byte{}

// maxLength bounds a protected file, and with it every table: 64 GiB.
const maxLength = 64 << 30

// tableBytes is what a table of so many sums takes, in whole pages.
func tableBytes(sums int) int { return buf.RoundUp(tableHeaderBytes + 4*sums) }

func (t *table) bytes() int { return tableBytes(len(t.sums)) }

// put writes the table into p, which has bytes() bytes.
func (t *table) put(p []byte) {
	clear(p)
	for i, s := range t.sums {
		le.PutUint32(p[tableHeaderBytes+4*i:], s)
	}
	le.PutUint32(p[atMagic:], tableMagic)
	le.PutUint16(p[atVersion:], tableVersion)
	p[atK], p[atM] = byte(t.K), byte(t.M)
	le.PutUint64(p[atGroup:], t.id.Group)
	le.PutUint64(p[atNumber:], t.id.Number)
	le.PutUint64(p[atLife:], t.id.Life)
	le.PutUint64(p[atLength:], uint64(t.length))
	le.PutUint32(p[atBlock:], BlockBytes)
	le.PutUint32(p[atCount:], uint32(len(t.sums)))
	le.PutUint16(p[atShard:], uint16(t.shard))
	le.PutUint32(p[atSumsCRC:], crc32.Checksum(p[tableHeaderBytes:tableHeaderBytes+4*len(t.sums)], castagnoli))
	le.PutUint32(p[atHeaderCRC:], crc32.Checksum(p[:atHeaderCRC], castagnoli))
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// parseTableHeader reads the header of a table, without its sums.
func parseTableHeader(p []byte) (t *table, sums int, err error) {
	if len(p) < tableHeaderBytes {
		return nil, 0, corrupt("table is cut short")
	}
	if le.Uint32(p[atMagic:]) != tableMagic {
		return nil, 0, corrupt("no table")
	}
	if le.Uint32(p[atHeaderCRC:]) != crc32.Checksum(p[:atHeaderCRC], castagnoli) {
		return nil, 0, corrupt("table header checksum")
	}
	if v := le.Uint16(p[atVersion:]); v != tableVersion {
		return nil, 0, fmt.Errorf("table of version %d: %w", v, ErrVersion)
	}
	t = &table{
		Geometry: Geometry{int(p[atK]), int(p[atM])},
		id:       Identity{le.Uint64(p[atGroup:]), le.Uint64(p[atNumber:]), le.Uint64(p[atLife:])},
		length:   int64(le.Uint64(p[atLength:])),
		shard:    int(le.Uint16(p[atShard:])),
	}
	sums = int(le.Uint32(p[atCount:]))
	for _, b := range p[atZero:atSumsCRC] {
		if b != 0 {
			return nil, 0, corrupt("reserved bytes of a table in use")
		}
	}
	switch {
	case t.Validate() != nil || t.length <= 0 || t.length > maxLength || le.Uint32(p[atBlock:]) != BlockBytes,
		t.id.Group == 0 || t.id.Number == 0 || t.id.Life == 0,
		t.shard != localShard && t.shard >= t.width(),
		sums != t.stripes()*t.width():
		return nil, 0, corrupt("table: a field without sense")
	}
	return t, sums, nil
}

// parseTable reads a whole table.
func parseTable(p []byte) (*table, error) {
	t, n, err := parseTableHeader(p)
	if err != nil {
		return nil, err
	}
	if len(p) < tableHeaderBytes+4*n {
		return nil, corrupt("table is cut short")
	}
	sums := p[tableHeaderBytes : tableHeaderBytes+4*n]
	if le.Uint32(p[atSumsCRC:]) != crc32.Checksum(sums, castagnoli) {
		return nil, corrupt("table checksum")
	}
	t.sums = make([]uint32, n)
	for i := range t.sums {
		t.sums[i] = le.Uint32(sums[4*i:])
	}
	return t, nil
}

// stripes is how many stripes the file has.
func (t *table) stripes() int {
	if t.shard == localShard {
		return localStripes(t.Geometry, t.length)
	}
	row := int64(t.K) * BlockBytes
	return int((t.length + row - 1) / row)
}

// of returns the sums of a stripe.
func (t *table) of(stripe int) []uint32 { return t.sums[stripe*t.width() : (stripe+1)*t.width()] }
