package vhostuser

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// What a guest may ask of a disk.
const (
	blkRead        = 0
	blkWrite       = 1
	blkFlush       = 4
	blkID          = 8
	blkDiscard     = 11
	blkWriteZeroes = 13
)

// What it is answered, in one byte.
const (
	statusOK    = 0
	statusError = 1
	statusNever = 2 // no such question here
)

const (
	sectorBytes  = 512
	requestBytes = 16
	rangeBytes   = 16
	idBytes      = 20
)

// request is one request, read from its chain.
type request struct {
	kind   uint32
	off    int64 // of a read or write, bytes
	n      int64 // payload, bytes
	out    [][]byte
	in     [][]byte
	status []byte // one byte of the guest's
	ranges []zeroRange
	plain  chain // what out and in are of
}

// zeroRange is a part of a discard or write-zeroes, in bytes.
type zeroRange struct {
	off, n int64
	unmap  bool
}

// errRequest says that a request is none that a disk of this size takes.
var errRequest = errors.New("no request that this disk takes")

// errNever says that a request is of a kind that is not known here.
var errNever = errors.New("no such request")

// parse takes a chain apart, for a disk of that many bytes. Without a status byte there is no
// way to answer: then status is nil. Other errors are told there.
func (r *request) parse(size int64) error {
	r.kind, r.off, r.n, r.status, r.ranges = 0, 0, 0, nil, r.ranges[:0]
	r.out, r.in = r.plain.out, r.plain.in
	last := len(r.in) - 1
	if last < 0 {
		return fmt.Errorf("%w: nowhere to answer", errRequest)
	}
	end := len(r.in[last]) - 1 // no piece is empty
	r.status = r.in[last][end:]
	if r.in[last] = r.in[last][:end]; end == 0 {
		r.in = r.in[:last]
	}
	var head [requestBytes]byte
	var ok bool
	if r.out, ok = take(r.out, head[:]); !ok {
		return fmt.Errorf("%w: shorter than its header", errRequest)
	}
	r.kind = le.Uint32(head[:])
	sector := le.Uint64(head[8:])
	switch r.kind {
	case blkRead:
		r.n = total(r.in)
		return r.place(sector, size)
	case blkWrite:
		r.n = total(r.out)
		return r.place(sector, size)
	case blkDiscard, blkWriteZeroes:
		return r.parseRanges(size)
	case blkFlush:
		return nil
	case blkID:
		if r.n = total(r.in); r.n > pooledBytes {
			return fmt.Errorf("%w: a name of %d bytes", errRequest, r.n)
		}
		return nil
	}
	return fmt.Errorf("%w: kind %d", errNever, r.kind)
}

// place says where a read or write belongs, once that is within the disk.
func (r *request) place(sector uint64, size int64) error {
	if r.n == 0 || r.n%sectorBytes != 0 || r.n > front.MaxWrite {
		return fmt.Errorf("%w: %d bytes", errRequest, r.n)
	}
	if sector > uint64(size/sectorBytes) || r.n > size-int64(sector)*sectorBytes {
		if !invariant.Planted("vhostuser/beyond-the-end") {
			return fmt.Errorf("%w: %d bytes at sector %d of %d bytes", errRequest, r.n, sector, size)
		}
	}
	r.off = int64(sector) * sectorBytes
	return nil
}

func (r *request) parseRanges(size int64) error {
	n := total(r.out)
	if n == 0 || n%rangeBytes != 0 || n > maxRanges*rangeBytes {
		return fmt.Errorf("%w: ranges of %d bytes", errRequest, n)
	}
	for range n / rangeBytes {
		var p [rangeBytes]byte
		r.out, _ = take(r.out, p[:])
		sector, count, flags := le.Uint64(p[:]), le.Uint32(p[8:]), le.Uint32(p[12:])
		if flags&^1 != 0 || flags != 0 && r.kind == blkDiscard {
			return fmt.Errorf("%w: flags %#x", errNever, flags)
		}
		bytes := int64(count) * sectorBytes
		if count > maxZeroSectors || sector > uint64(size/sectorBytes) || bytes > size-int64(sector)*sectorBytes {
			return fmt.Errorf("%w: %d sectors at %d of %d bytes", errRequest, count, sector, size)
		}
		r.ranges = append(r.ranges, zeroRange{int64(sector) * sectorBytes, bytes, flags&1 != 0})
	}
	return nil
}

// answer is what the guest is told of an error, and how many bytes of its memory were written.
func (r *request) answer(err error) (status byte, written uint32) {
	switch {
	case errors.Is(err, errNever):
		return statusNever, 1
	case err != nil:
		return statusError, 1
	case r.kind == blkRead || r.kind == blkID:
		return statusOK, uint32(r.n) + 1
	}
	return statusOK, 1
}
