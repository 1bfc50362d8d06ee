package journal

import "github.com/holdfast-dr/holdfast/journal/segment"

// foldable is a closed segment as the choice of what to fold looks at it.
type foldable struct {
	from, to segment.Pos // its places
	bytes    int64       // of its records
	cuts     int         // how many there are in it
	lost     int         // how many of them are of checkpoints that are gone
	tried    int         // lost, when it was last found that folding is of little use
	ready    bool        // it was verified, nothing in it is damaged, and its index is on disk
}

const (
	// maxFoldBytes and maxFoldExtents bound what is folded at once: the plan takes about 80
	// bytes of memory for each extent, and the disk holds old and new until it is done.
	maxFoldBytes   = 1 << 30
	maxFoldExtents = 1 << 20
)

// chooseRow chooses the first row [from, to) of neighbouring segments that is worth a plan: at
// least half of the cuts in it are of checkpoints that are gone, so that a record is
// folded again only when half of the checkpoints around it went, and more of them than
// when it was last tried. Nothing: to is 0.
func chooseRow(segs []foldable, maxBytes int64) (from, to int) {
	for from = 0; from < len(segs); from++ {
		if segs[from].lost == 0 || !segs[from].ready {
			continue
		}
		var bytes int64
		cuts, lost, tried, end := 0, 0, 0, 0
		for i := from; i < len(segs) && segs[i].ready; i++ {
			s := &segs[i]
			if bytes += s.bytes; bytes > maxBytes && i > from {
				break
			}
			cuts, lost, tried = cuts+s.cuts, lost+s.lost, tried+s.tried
			if s.lost > 0 && 2*lost >= cuts && lost > tried+tried/2 {
				end = i + 1
			}
		}
		if end > 0 {
			return from, end
		}
	}
	return 0, 0
}

// worthFold says whether what is left of a row is little enough to write it anew.
func worthFold(before, left int64) bool { return before > 0 && before-left >= before/8 }
