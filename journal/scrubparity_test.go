package journal

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// Parity rots too, and nobody reads it before it is needed: reading all back finds that and makes
// it anew, so that a segment that rots later comes back.
func TestScrubReadsParity(t *testing.T) {
	par := strings.TrimSuffix(logFile(1), ".seg") + ".par"
	for name, hurt := range map[string]func(*faultdisk.Disk) error{
		"a block":   func(d *faultdisk.Disk) error { return d.Rot(par, 4096+7, 1) },
		"the front": func(d *faultdisk.Disk) error { return d.Rot(par, 90, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := faultdisk.New(512)
				p := &localParity{stripe.Local{FS: disk}, nil}
				s := scrubbed(t, disk, p)
				w, err := openWith(scrubConfig(disk, p))
				ok(t, err)
				defer func() { ok(t, w.store.Close()) }()
				ok(t, hurt(disk))
				ok(t, w.verify())
				if _, repairs := w.store.ScrubStats(); repairs != 1 {
					t.Errorf("%d repairs", repairs)
				}
				ok(t, w.verify())
				if _, repairs := w.store.ScrubStats(); repairs != 1 {
					t.Errorf("%d repairs after what was whole was read once more", repairs)
				}
				ok(t, disk.Rot(logFile(1), s.vital, 1))
				ok(t, w.verify())
				if _, repairs := w.store.ScrubStats(); repairs != 2 || w.group.Damaged() != 0 {
					t.Errorf("%d repairs, %d places damaged", repairs, w.group.Damaged())
				}
				_, err = w.honest(s, true)
				ok(t, err)
			})
		})
	}
}
