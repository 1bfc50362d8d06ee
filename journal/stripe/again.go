package stripe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Verify reads back what protects a file: both tables and every block of parity. If any of
// it is damaged, all is made anew, in a new file, from the protected one, which must
// have been verified just now; where that is no longer what the parity says it was, the parity
// stays as it is and the error is ErrCorrupt. The protected file is read only then.
func (l Local) Verify(name string, id Identity, pace Pace) (anew bool, err error) {
	p, err := openProtected(l.FS, name, id)
	if err != nil {
		return false, fmt.Errorf("read the parity of %s back: %w", name, err)
	}
	if p.found.Resized {
		err = corrupt("the file has another length than its parity says")
	}
	b := buf.Aligned(BlockBytes)
	for _, z := range zonesOf(p.Geometry, p.length) {
		if err == nil && !invariant.Planted("journal/stripe/parity-unread") {
			err = p.checkParity(b, z, pace)
		}
	}
	if err = errors.Join(err, p.close()); err == nil && !p.found.Well() {
		anew, err = true, protect(l.FS, name, id, p.table, pace)
	}
	if err != nil {
		return false, fmt.Errorf("read the parity of %s back: %w", name, err)
	}
	return anew, nil
}

// sameData says whether both tables have the same sums for a zone's blocks of the protected file.
func (t *table) sameData(other *table, z zone) bool {
	if t.length != other.length || t.Geometry != other.Geometry {
		return false
	}
	for s := z.stripe; s < z.stripe+z.stripes; s++ {
		if !slices.Equal(t.of(s)[:t.K], other.of(s)[:t.K]) {
			return false
		}
	}
	return true
}
