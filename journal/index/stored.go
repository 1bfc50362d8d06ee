package index

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Span is a part of the log.
type Span struct{ From, To segment.Pos }

// Place is a part of a volume whose bytes a record put there, and the block of the log
// that holds them.
type Place struct {
	Volume   record.VolumeID
	Off, Len int64
	Pos      segment.Pos // of the record
	Number   int         // of the block
	Stream   record.StreamID
	Seq      record.Seq
}

// Stored returns the places whose bytes lie in the spans, or in a block of a record whose
// header or tables do. It walks all versions, a page of lines at a time, so that
// appends go on: some nanoseconds for each version of the log.
func (v *Versions) Stored(spans []Span) (found []Place, err error) {
	type page struct {
		vol record.VolumeID
		at  int64
	}
	var pages []page
	v.mu.RLock()
	for vol, x := range v.volumes {
		for at := range x.pages {
			pages = append(pages, page{vol, at})
		}
	}
	v.mu.RUnlock()
	for _, p := range pages {
		found = v.storedInPage(found, p.vol, p.at, spans)
	}
	return found, nil
}

func (v *Versions) storedInPage(found []Place, vol record.VolumeID, page int64, spans []Span) []Place {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for line, head := range v.volumes[vol].pages[page] {
		base := (page*linesPerPage + int64(line)) * record.LineBytes
		for head != 0 {
			e := v.entries.at(head - 1)
			head = e.older
			if e.block == zeroBlock || !v.liesInLocked(e, spans) {
				continue
			}
			r := v.records.at(e.rec)
			found = append(found, Place{Volume: vol, Off: base + int64(e.from), Len: int64(e.length) + 1, Pos: r.pos,
				Number: int(e.block - r.firstBlock), Stream: r.stream.id, Seq: r.seq})
			if invariant.Planted("journal/index/newest-alone") {
				break
			}
		}
	}
	return found
}

// liesInLocked says whether a span touches the version's block as it is stored, or what
// comes before the first block of its record.
func (v *Versions) liesInLocked(e *versionEntry, spans []Span) bool {
	r, b := v.records.at(e.rec), v.blocks.at(e.block)
	tables := r.pos + segment.Pos(v.blocks.at(r.firstBlock).at)
	from := r.pos + segment.Pos(b.at)
	to := from + segment.Pos(b.stored) + 1
	for _, s := range spans {
		if s.From < to && s.To > from || s.From < tables && s.To > r.pos {
			return true
		}
	}
	return false
}
