package journal

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// A portion so large that several readers fetch it from the log: the replica is what was
// written, blocks of one record that were overwritten in part included; and a read that
// fails ends the pass, which is made again.
func TestPromoteLargePortion(t *testing.T) {
	const volume, total = 4 << 20, 3 << 20
	for _, size := range []int64{4 << 10, 20 << 10, 64 << 10} {
		disk := faultdisk.New(512)
		cfg := config(disk)
		cfg.SegmentBytes, cfg.IndexMemory = 0, 0
		store, err := Open(cfg)
		ok(t, err)
		g, err := store.OpenGroup(GroupInfo{ID: testGroup, Name: "large", Lineage: 1})
		ok(t, err)
		ok(t, g.SetVolumes([]VolumeInfo{{ID: 1, Name: "disk", Bytes: volume}}))
		image := make([]byte, volume)
		fillRandom(t, g, volume, size, total, image)
		reads := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, At: 12, Ever: true, Only: func(string) bool { reads++; return true }})
		err = g.promote(2, noPace)
		disk.Heal()
		if reads < 12 || !errors.Is(err, syscall.EIO) {
			t.Fatalf("writes of %d bytes: a read of %d failed: %v", size, reads, err)
		}
		ok(t, g.promote(2, noPace))
		got := make([]byte, volume)
		ok(t, g.volumes[1].replica.ReadAt(got, 0))
		if !bytes.Equal(got, image) {
			t.Errorf("writes of %d bytes: the replica is not what was written", size)
		}
		ok(t, store.Close())
	}
}
