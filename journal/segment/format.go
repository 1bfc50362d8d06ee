package segment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/wire/record"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// version is that of everything but the header.
const version = 1

// commit ends a round: it fills the end of the round's last page. Between the last
// record and it stand zeros.
type commit struct {
	Life    uint64 // of the segment
	Durable Pos    // the log was known durable up to here: where the round begins
	Records Pos    // where the round's records end
	End     Pos    // where the round ends, and the next begins
	Count   uint32 // records in the round, never zero
	Chain   uint32 // of all records up to here
}

const (
	commitMagic = 0x31434648 // "HFC1"
	commitBytes = 64

	atCommitLife  = 8
	atDurable     = 16
	atRecords     = 24
	atEnd         = 32
	atCount       = 40
	atCommitChain = 44
	atCommitZero  = 48
	atCommitCRC   = 60
)

var _ [commitBytes]byte = [atCommitCRC + 4]byte{}

// commitEnd returns where a round ends whose records end at pos.
func commitEnd(pos Pos) Pos {
	return (pos + commitBytes + pageBytes - 1) / pageBytes * pageBytes
}

func (c commit) put(p []byte) {
	p = p[:commitBytes]
	clear(p)
	le.PutUint32(p[atMagic:], commitMagic)
	le.PutUint16(p[atVersion:], version)
	le.PutUint64(p[atCommitLife:], c.Life)
	le.PutUint64(p[atDurable:], uint64(c.Durable))
	le.PutUint64(p[atRecords:], uint64(c.Records))
	le.PutUint64(p[atEnd:], uint64(c.End))
	le.PutUint32(p[atCount:], c.Count)
	le.PutUint32(p[atCommitChain:], c.Chain)
	le.PutUint32(p[atCommitCRC:], crc32.Checksum(p[:atCommitCRC], castagnoli))
}

func parseCommit(p []byte) (commit, error) {
	if len(p) < commitBytes {
		return commit{}, corrupt("commit is cut short")
	}
	p = p[:commitBytes]
	if err := checkFrame(p, commitMagic, atCommitCRC, version); err != nil {
		return commit{}, fmt.Errorf("commit: %w", err)
	}
	c := commit{
		Life:    le.Uint64(p[atCommitLife:]),
		Durable: Pos(le.Uint64(p[atDurable:])),
		Records: Pos(le.Uint64(p[atRecords:])),
		End:     Pos(le.Uint64(p[atEnd:])),
		Count:   le.Uint32(p[atCount:]),
		Chain:   le.Uint32(p[atCommitChain:]),
	}
	switch {
	case !allZero(p[atCommitZero:atCommitCRC]):
		return commit{}, corrupt("commit: reserved bytes in use")
	case c.Life == 0 || c.Durable < Start || c.Durable%pageBytes != 0 || c.Count == 0 ||
		c.Records <= c.Durable || c.Records > maxPos || c.End != commitEnd(c.Records):
		return commit{}, corrupt("commit: a field without sense")
	}
	return c, nil
}

// maxPos keeps sums of positions and sizes far from overflow.
const maxPos Pos = 1 << 62

// checkFrame checks magic, checksum, the version, which is 1 to newest, and the
// reserved bytes after it, in this order.
func checkFrame(p []byte, magic uint32, atCRC int, newest uint16) error {
	switch {
	case le.Uint32(p[atMagic:]) != magic:
		return corrupt("magic")
	case crc32.Checksum(p[:atCRC], castagnoli) != le.Uint32(p[atCRC:]):
		return corrupt("checksum")
	case le.Uint16(p[atVersion:])-1 >= newest:
		return fmt.Errorf("version %d: %w", le.Uint16(p[atVersion:]), ErrVersion)
	case le.Uint16(p[atZero:]) != 0:
		return corrupt("reserved bytes in use")
	}
	return nil
}

// chainStart is the chain of a log without records: the group is in every chain.
func chainStart(g record.GroupID) uint32 {
	return crc32.Checksum(le.AppendUint64(nil, uint64(g)), castagnoli)
}

// chainNext adds a record. It takes the header's checksum, which stands for every
// byte of the record, and not the header: a CRC over bytes that end in their own
// CRC is the same for all.
func chainNext(chain uint32, h record.Header) uint32 {
	chain = ^chain ^ h.Checksum // crc32.Update over its four bytes, which would allocate them
	for range 4 {
		chain = castagnoli[byte(chain)] ^ chain>>8
	}
	return ^chain
}

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

var zeros [pageBytes]byte

func allZero(p []byte) bool {
	for len(p) > pageBytes {
		if !bytes.Equal(p[:pageBytes], zeros[:]) {
			return false
		}
		p = p[pageBytes:]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
