package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func machineConfig(dir string) Config {
	return Config{FS: ioengine.OS(), Dir: dir, SegmentBytes: 64 << 10, Log: slog.New(slog.DiscardHandler)}
}

// The same story on this machine's files, with Badger: a catalogue of an older release
// goes, and what it lists is found again in the log.
func TestOnThisMachine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	catalogue := filepath.Join(dir, catalogueName)
	old := filepath.Join(catalogue, "000077.sst")
	s := newSource(11)
	s.script()
	run := func(what string, records []record.Record) {
		t.Helper()
		w, err := openWith(machineConfig(dir))
		ok(t, err)
		for _, r := range records {
			ok(t, w.group.admitFor(r))
			ok(t, w.send([]record.Record{r}, 1))
		}
		if records == nil {
			numbers, err := w.check(s)
			if err != nil || len(numbers) != len(s.images) {
				t.Errorf("%s: listed %v, %v", what, numbers, err)
			}
		}
		ok(t, w.store.Close())
		if _, err := os.Stat(catalogue); err != nil {
			t.Errorf("%s: no catalogue on disk: %v", what, err)
		}
		if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: that of an older release is still there: %v", what, err)
		}
	}
	half := len(s.records) - 4
	run("half", s.records[:half])
	ok(t, os.RemoveAll(catalogue))
	ok(t, os.Mkdir(catalogue, 0o700))
	ok(t, os.WriteFile(old, []byte("of an older release"), 0o600))
	run("rest", s.records[half:])
	run("again", nil)
}

// The source and the target die together in an initial sync: a new life reads the
// blocks again, over whatever a crash tore, and its first checkpoint is whole.
func TestSyncAgainInANewLife(t *testing.T) {
	rng := seeded(12)
	s := newSource(12)
	s.open(true)
	for range 4 {
		s.write(6)
	}
	disk := faultdisk.New(512)
	live(t, s, disk, 1, func(acked record.Seq, _ []uint64) error {
		if disk.Ops()%stride(5) != 0 {
			return nil
		}
		for _, keep := range keeps {
			w, err := openTarget(disk.Crash(rng, keep))
			if err != nil {
				return err
			}
			standing, err := w.group.Admit(testStream, 1, 2)
			if err != nil {
				return err
			}
			if standing.Durable < acked || !standing.NeedOpen {
				return fmt.Errorf("seq %d was acknowledged, standing %+v", acked, standing)
			}
			again := newSource(int(standing.Durable))
			again.id = record.Identity{Stream: testStream, Epoch: 1, Incarnation: 2, Seq: standing.Durable}
			again.volumes = s.image()
			again.open(true)
			again.read()
			again.close()
			again.write(3)
			number := again.checkpoint()
			if err := w.send(again.records, 2); err != nil {
				return err
			}
			if _, err := w.group.Admit(testStream, 1, 2); err != nil {
				return err
			}
			if err := w.compare(number, again.images[number]); err != nil {
				return err
			}
			if err := w.store.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

// read makes the records of a sync that reads all volumes whole.
func (s *source) read() {
	for _, v := range testVolumes {
		b := record.NewBatch(record.Limits{})
		for off := int64(0); off < v.Bytes; off += 4096 {
			s.ticket++
			n := min(4096, v.Bytes-off)
			b.Add(record.Piece{Volume: v.ID, Off: off, Len: n, Ticket: s.ticket, Data: s.volumes[v.ID][off : off+n]})
		}
		id, now := s.next()
		s.add(b.Seal(nil, id, now, record.NewCompressor()))
	}
}

// go test ./journal -run '^$' -bench Append
//
// The folder is the test's temporary one: TMPDIR says on which disk.
func BenchmarkAppend(b *testing.B) {
	const size = 1 << 30
	for _, what := range []string{"sync", "log"} {
		b.Run("to="+what, func(b *testing.B) {
			store, err := Open(machineConfigOf(b))
			ok(b, err)
			defer store.Close()
			g, err := store.OpenGroup(GroupInfo{ID: 1, Name: "g", Lineage: 1})
			ok(b, err)
			ok(b, g.SetVolumes([]VolumeInfo{{ID: 1, Name: "v", Bytes: size}}))
			_, err = g.Admit(1, 1, 1)
			ok(b, err)
			id := record.Identity{Stream: 1, Epoch: 1, Incarnation: 1}
			slots := make(chan struct{}, 32)
			add := func(p []byte) {
				r, err := record.Parse(p)
				ok(b, err)
				slots <- struct{}{}
				ok(b, g.Append(r, func(err error) {
					if err != nil {
						b.Error(err)
					}
					<-slots
				}))
			}
			id.Seq++
			add(record.AppendResyncOpen(nil, id, 1, 1, record.Resync{Initial: true}))
			if what == "log" {
				id.Seq++
				add(record.AppendResyncClose(nil, id, 1, 1, record.Resync{Initial: true}))
			}
			rng := seeded(1)
			data := make([]byte, 64<<10)
			for i := range data {
				data[i] = byte(rng.Uint32()) >> (i % 8)
			}
			batch, c := record.NewBatch(record.Limits{}), record.NewCompressor()
			for at := range int64(8) {
				batch.Add(record.Piece{Volume: 1, Off: at << 16, Len: 64 << 10, Ticket: record.Ticket(at + 2), Data: data})
			}
			b.SetBytes(int64(batch.Raw()))
			for b.Loop() {
				id.Seq++
				add(batch.Seal(nil, id, 1, c))
			}
			for range cap(slots) {
				slots <- struct{}{}
			}
		})
	}
}

func machineConfigOf(b *testing.B) Config {
	cfg := machineConfig(filepath.Join(b.TempDir(), "store"))
	cfg.SegmentBytes = 0
	return cfg
}
