package capture

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The pool's three memory files; FORMAT.md tells who writes what.
//
//	payload: slots of SlotBytes                      filter writes
//	desc:    header, rings, slot descriptors         filter writes
//	state:   header, ring heads, returns, states     both write
const (
	descMagic   = 0x3143_5345_444c_5048 // "HPLDESC1"
	stateMagic  = 0x3154_4154_534c_5048 // "HPLSTAT1"
	poolVersion = 1

	poolAtMagic    = 0
	poolAtVersion  = 8
	poolAtSlots    = 12
	poolAtRings    = 16
	poolAtRingCap  = 20
	poolAtInstance = 24

	// Counters in the desc header, for status.
	descAtGuestWrites = 64
	descAtGuestBytes  = 72
	descAtCaptured    = 80
	descAtDropped     = 88
	descAtUncaptured  = 96
	descAtSyncBytes   = 104
	descAtFree        = 112 // slots that are free at the filter
	descAtRetHead     = 128 // what the filter has taken from the returns

	descAtLogs      = 256  // a word a ring: how the volume's activity log is
	descAtSizes     = 768  // a word a ring: the volume's size in bytes; 0 from a filter of an older release
	descAtUses      = 1280 // a word a ring: how many connections use the volume, and 1; 0 from a filter of an older release
	poolHeaderBytes = 4096

	// A ring in desc: tail and busy, each on a cache line, then the entries.
	ringAtTail     = 0
	ringAtBusy     = 64
	ringAtEntries  = 128
	ringEntryBytes = 16

	descBytes = 64

	// In state: a head a ring, then the tail of the returns.
	stateHeadBytes = 64
)

// Limits of a pool: checked by both sides.
const (
	minSlots = 128
	maxSlots = 8 << 20 // 64 GiB
	maxRings = 64
)

// poolShape is what places everything in the three files.
type poolShape struct {
	slots, rings int
	ringCap      int // entries a ring; a power of two, at least slots
	instance     uint64
}

func shapeOf(slots, rings int, instance uint64) poolShape {
	return poolShape{slots: slots, rings: rings, ringCap: 1 << bits.Len(uint(slots-1)), instance: instance}
}

func (s poolShape) check() error {
	if s.slots < minSlots || s.slots > maxSlots || s.rings < 1 || s.rings > maxRings || s.instance == 0 ||
		s != shapeOf(s.slots, s.rings, s.instance) {
		return fmt.Errorf("pool of %d slots, %d rings of %d: %w", s.slots, s.rings, s.ringCap, ErrCorrupt)
	}
	return nil
}

func pages(n int64) int64 { return (n + 4095) &^ 4095 }

func (s poolShape) payloadBytes() int64 { return int64(s.slots) * SlotBytes }
func (s poolShape) ringBytes() int64    { return ringAtEntries + int64(s.ringCap)*ringEntryBytes }
func (s poolShape) ringAt(r int) int64  { return poolHeaderBytes + int64(r)*s.ringBytes() }
func (s poolShape) descAt(slot uint32) int64 {
	return pages(s.ringAt(s.rings)) + int64(slot)*descBytes
}
func (s poolShape) descFileBytes() int64 { return pages(s.descAt(uint32(s.slots))) }

func (s poolShape) headAt(r int) int64   { return poolHeaderBytes + int64(r)*stateHeadBytes }
func (s poolShape) retTailAt() int64     { return s.headAt(s.rings) }
func (s poolShape) retAt(i uint64) int64 { return s.headAt(s.rings+1) + int64(i&uint64(s.ringCap-1))*8 }
func (s poolShape) stateAt(slot uint32) int64 {
	return pages(s.headAt(s.rings+1)+int64(s.ringCap)*8) + int64(slot)*8
}
func (s poolShape) stateFileBytes() int64 { return pages(s.stateAt(uint32(s.slots))) }

// putPoolHeader writes the header of the desc or the state file.
func putPoolHeader(mem []byte, magic uint64, s poolShape) {
	le := binary.LittleEndian
	le.PutUint32(mem[poolAtVersion:], poolVersion)
	le.PutUint32(mem[poolAtSlots:], uint32(s.slots))
	le.PutUint32(mem[poolAtRings:], uint32(s.rings))
	le.PutUint32(mem[poolAtRingCap:], uint32(s.ringCap))
	le.PutUint64(mem[poolAtInstance:], s.instance)
	le.PutUint64(mem[poolAtMagic:], magic)
}

// checkPoolHeader holds a mapped file against the shape that the filter told.
func checkPoolHeader(mem []byte, magic uint64, s poolShape) error {
	le := binary.LittleEndian
	if len(mem) < poolHeaderBytes || le.Uint64(mem[poolAtMagic:]) != magic {
		return fmt.Errorf("pool magic: %w", ErrCorrupt)
	}
	if v := le.Uint32(mem[poolAtVersion:]); v != poolVersion {
		return fmt.Errorf("pool version %d: %w", v, ErrVersion)
	}
	got := poolShape{
		slots:    int(le.Uint32(mem[poolAtSlots:])),
		rings:    int(le.Uint32(mem[poolAtRings:])),
		ringCap:  int(le.Uint32(mem[poolAtRingCap:])),
		instance: le.Uint64(mem[poolAtInstance:]),
	}
	if got != s {
		return fmt.Errorf("pool header %+v, told %+v: %w", got, s, ErrCorrupt)
	}
	return s.check()
}

// A state word is the slot's use count, above its state: a word seen twice is the same use.
const (
	slotFree      = 1 + iota
	slotClaimed   // the filter fills it
	slotTicketing // the filter may be taking, or may have, a ticket for it
	slotPublished // the VRA's, to free
	slotMember    // belongs to the first slot of its write
	slotRevoked   // was stuck in ticketing; the filter drops the write
)

func stateOf(w uint64) uint64              { return w & 0xff }
func useOf(w uint64) uint64                { return w >> 8 }
func withState(w uint64, to uint64) uint64 { return w&^0xff | to }
func nextUse(w uint64, to uint64) uint64   { return (useOf(w)+1)<<8 | to }

// desc describes one write; it stands at the write's first slot. A member's holds only next.
type desc struct {
	ticket   record.Ticket
	off, n   int64
	captured int64
	volume   record.VolumeID
	slots    uint32 // of the write
	next     uint32 // the write's next slot + 1; 0 ends it
	kind     Kind
}

const (
	descAtTicket = 0
	descAtOff    = 8
	descAtLen    = 16
	descAtTime   = 24
	descAtVolume = 32
	descAtCount  = 36
	descAtNext   = 40
	descAtKind   = 44
)

func (d desc) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint64(p[descAtTicket:], uint64(d.ticket))
	le.PutUint64(p[descAtOff:], uint64(d.off))
	le.PutUint64(p[descAtLen:], uint64(d.n))
	le.PutUint64(p[descAtTime:], uint64(d.captured))
	le.PutUint32(p[descAtVolume:], uint32(d.volume))
	le.PutUint32(p[descAtCount:], d.slots)
	le.PutUint32(p[descAtNext:], d.next)
	p[descAtKind] = byte(d.kind)
}

// parseDesc reads a descriptor and refuses what no filter writes.
func parseDesc(p []byte, slots int) (desc, error) {
	le := binary.LittleEndian
	d := desc{
		ticket:   record.Ticket(le.Uint64(p[descAtTicket:])),
		off:      int64(le.Uint64(p[descAtOff:])),
		n:        int64(le.Uint64(p[descAtLen:])),
		captured: int64(le.Uint64(p[descAtTime:])),
		volume:   record.VolumeID(le.Uint32(p[descAtVolume:])),
		slots:    le.Uint32(p[descAtCount:]),
		next:     le.Uint32(p[descAtNext:]),
		kind:     Kind(p[descAtKind]),
	}
	payload := d.kind == Data || d.kind == SyncData
	switch {
	case d.kind < Data || d.kind > SyncZero, d.ticket == 0, d.volume == 0,
		d.off < 0, d.n <= 0, d.n > record.VolumeLimit-d.off,
		d.slots == 0, int64(d.slots) > int64(slots),
		payload && (d.n+SlotBytes-1)/SlotBytes != int64(d.slots),
		!payload && d.slots != 1,
		(d.next == 0) != (d.slots == 1), int64(d.next) > int64(slots):
		return desc{}, fmt.Errorf("slot descriptor %+v: %w", d, ErrCorrupt)
	}
	return d, nil
}

// A ring entry is a ticket, and the slot with the low half of its use count: together
// they tell an entry from an older one whose slot has gone on.
func putRingEntry(p []byte, t record.Ticket, slot uint32, use uint64) {
	binary.LittleEndian.PutUint64(p, uint64(t))
	binary.LittleEndian.PutUint64(p[8:], use<<32|uint64(slot))
}

func parseRingEntry(p []byte) (t record.Ticket, slot uint32, use uint32) {
	v := binary.LittleEndian.Uint64(p[8:])
	return record.Ticket(binary.LittleEndian.Uint64(p)), uint32(v), uint32(v >> 32)
}

// leNext is the chain's next slot + 1, of a descriptor that may be a member's.
func leNext(p []byte) uint32 { return binary.LittleEndian.Uint32(p[descAtNext:]) }
