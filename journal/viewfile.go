package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// A view that is kept stands in a file of one sector: FORMAT.md.
const (
	viewMagic     = 0x564d4648 // "HFMV"
	viewVersion   = 1
	viewFileBytes = 512

	atViewMagic      = 0
	atViewVersion    = 4
	atViewState      = 5
	atViewFlags      = 6
	atViewGroup      = 8
	atViewNumber     = 16
	atViewCheckpoint = 24
	atViewLimit      = 32
	atViewOpened     = 40
	atViewName       = 48 // length u16, then that of the reason
	atViewReason     = 50
	atViewText       = 52
	atViewCRC        = viewFileBytes - 4

	maxViewReason = 256

	viewFlagScratch = 1
	viewFlagLive    = 2
	viewFlagPassing = 4
)

var (
	_ [viewFileBytes]byte = [atViewCRC + 4]byte{}
	_                     = [atViewCRC - atViewText - maxName - maxViewReason]byte{} // the texts fit
)

// viewLife says how far a kept view has come.
type viewLife uint8

const (
	viewOpen   viewLife = iota + 1
	viewClosed          // its scratch is gone, or to be removed
	viewGave            // it gave way: the same, and its user has not been told yet
	viewFailed          // a sync of its scratch failed: it may be read, nothing more
)

// viewRecord is a view as it is written down.
type viewRecord struct {
	life       viewLife
	scratch    bool
	live       bool
	passing    bool
	group      record.GroupID
	number     uint64
	checkpoint uint64
	limit      int64
	opened     int64 // wall clock, ns
	name       string
	reason     string // why it gave way or failed; at most maxViewReason bytes
}

func (r viewRecord) encode() []byte {
	p := make([]byte, viewFileBytes)
	le := binary.LittleEndian
	le.PutUint32(p[atViewMagic:], viewMagic)
	p[atViewVersion], p[atViewState] = viewVersion, byte(r.life)
	if r.scratch {
		p[atViewFlags] |= viewFlagScratch
	}
	if r.live {
		p[atViewFlags] |= viewFlagLive
	}
	if r.passing {
		p[atViewFlags] |= viewFlagPassing
	}
	le.PutUint64(p[atViewGroup:], uint64(r.group))
	le.PutUint64(p[atViewNumber:], r.number)
	le.PutUint64(p[atViewCheckpoint:], r.checkpoint)
	le.PutUint64(p[atViewLimit:], uint64(r.limit))
	le.PutUint64(p[atViewOpened:], uint64(r.opened))
	le.PutUint16(p[atViewName:], uint16(len(r.name)))
	le.PutUint16(p[atViewReason:], uint16(len(r.reason)))
	copy(p[atViewText:], r.name+r.reason)
	le.PutUint32(p[atViewCRC:], crc32.Checksum(p[:atViewCRC], castagnoli))
	return p
}

// decodeView reads a view's file. ErrFormat: a newer release wrote it.
func decodeView(p []byte) (r viewRecord, err error) {
	le := binary.LittleEndian
	corrupt := func() (viewRecord, error) { return viewRecord{}, fmt.Errorf("view file: %w", ErrCorrupt) }
	if len(p) != viewFileBytes || le.Uint32(p[atViewMagic:]) != viewMagic || crc32.Checksum(p[:atViewCRC], castagnoli) != le.Uint32(p[atViewCRC:]) {
		return corrupt()
	}
	if p[atViewVersion] != viewVersion {
		return r, fmt.Errorf("view file of version %d, want %d: %w", p[atViewVersion], viewVersion, ErrFormat)
	}
	name, reason := int(le.Uint16(p[atViewName:])), int(le.Uint16(p[atViewReason:]))
	if name > maxName || reason > maxViewReason {
		return corrupt()
	}
	r = viewRecord{life: viewLife(p[atViewState]), scratch: p[atViewFlags]&viewFlagScratch != 0, live: p[atViewFlags]&viewFlagLive != 0, passing: p[atViewFlags]&viewFlagPassing != 0,
		group: record.GroupID(le.Uint64(p[atViewGroup:])), number: le.Uint64(p[atViewNumber:]), checkpoint: le.Uint64(p[atViewCheckpoint:]),
		limit: int64(le.Uint64(p[atViewLimit:])), opened: int64(le.Uint64(p[atViewOpened:])),
		name: string(p[atViewText : atViewText+name]), reason: string(p[atViewText+name : atViewText+name+reason])}
	if r.life < viewOpen || r.life > viewFailed || r.number == 0 || r.checkpoint == 0 || r.limit < 0 || string(r.encode()) != string(p) {
		return corrupt()
	}
	return r, nil
}

// cutView shortens a reason to what fits, at a character.
func cutView(reason string) string {
	for len(reason) > maxViewReason {
		_, n := utf8.DecodeLastRuneInString(reason)
		reason = reason[:len(reason)-n]
	}
	return reason
}
