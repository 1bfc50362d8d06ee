package index

import "sync"

// Regions are what large lookups skip by when nothing touches them: of 16 MiB and of 8 GiB.
const (
	regionShift = 24
	wideShift   = 33
	wideRegion  = 1 << 63
)

// regions are those that versions of fine levels of a memtable touch. They are found out when they are
// first asked for: adding does without.
type regions struct {
	mu    sync.Mutex
	of    map[uint64]struct{}
	known int // versions that were looked at
}

func regionKey(vol uint32, region uint64) uint64 { return uint64(vol)<<32 | region }

func (r *regions) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.of)) * 24
}

// ofLocked returns the regions that versions touch. Nobody adds as long as m.mu is held, so what
// is returned does not change.
func (m *memtable) regionsLocked() map[uint64]struct{} {
	r := &m.touched
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = make(map[uint64]struct{})
	}
	for ; r.known < m.versions.n; r.known++ {
		v := m.versions.at(uint32(r.known))
		if r.known == 0 || v.level() > fineLevel {
			continue
		}
		key := regionKey(v.vol, v.off()>>regionShift)
		if _, ok := r.of[key]; !ok {
			r.of[key] = struct{}{}
			r.of[regionKey(v.vol, v.off()>>wideShift)|wideRegion] = struct{}{}
		}
	}
	return r.of
}

// touchedLocked returns where the first region at or behind at that has versions of fine
// levels begins, or at itself; limit or more when there is none before it.
func (m *memtable) touchedLocked(vol uint32, at, limit int64) int64 {
	of := m.regionsLocked()
	for at < limit {
		if _, ok := of[regionKey(vol, uint64(at)>>wideShift)|wideRegion]; !ok {
			at = (at>>wideShift + 1) << wideShift
			continue
		}
		if _, ok := of[regionKey(vol, uint64(at)>>regionShift)]; ok {
			return at
		}
		at = (at>>regionShift + 1) << regionShift
	}
	return at
}
