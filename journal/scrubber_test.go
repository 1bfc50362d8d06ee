package journal

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// scrubbed is a store with sealed segments and replicas, closed.
func scrubbed(t *testing.T, disk *faultdisk.Disk, p Protector) *source {
	t.Helper()
	s := newSource(71)
	s.script()
	for range 6 {
		s.write(5)
		s.checkpoint()
	}
	w, err := openWith(scrubConfig(disk, p))
	ok(t, err)
	ok(t, w.feed(s, 3))
	time.Sleep(2 * readBackIdle)
	synctest.Wait()
	if v := w.group.Verified(); v == 0 || v >= s.cut {
		t.Fatalf("verified up to %d of %d: the test has lost its reach", v, s.cut)
	}
	first := w.group.segments.Segments()[0]
	ok(t, w.group.segments.Replay(first.First, first.End, segment.ReplayOptions{}, func(pos segment.Pos, rec record.Record) error {
		if rec.Seq == 10 && rec.Kind == record.KindData { // how the rounds lie differs from run to run
			s.vital = 4096 + int64(pos-first.First) + 700
		}
		return nil
	}))
	if s.vital == 0 {
		t.Fatal("the tenth record is not in the first segment: the test has lost its reach")
	}
	ok(t, w.store.Close())
	return s
}

func scrubConfig(disk *faultdisk.Disk, p Protector) Config {
	cfg := config(disk)
	kept := new(index.Memory)
	cfg.SegmentBytes, cfg.Protector, cfg.Still = 16<<10, p, true
	cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
	return cfg
}

// verify has all of the group read, and waits until it was.
func (t *target) verify() error {
	if err := t.group.Verify(); err != nil {
		return err
	}
	for range 1000 {
		time.Sleep(time.Second)
		if !t.group.Verification().Asked {
			return nil
		}
	}
	return fmt.Errorf("it never ends: %+v", t.group.Verification())
}

// unread are the blocks that cannot be read of a checkpoint.
func (t *target) unread(number uint64) (lost []Place, err error) {
	v, err := t.group.OpenView(number, ViewOptions{})
	if err != nil {
		return nil, err
	}
	defer v.Close()
	for _, vol := range testVolumes {
		d, _ := v.Device(vol.ID)
		for off := int64(0); off < vol.Bytes; off += replica.BlockBytes {
			if err := d.ReadAt(make([]byte, min(replica.BlockBytes, vol.Bytes-off)), off); err != nil {
				lost = append(lost, Place{vol.ID, off, replica.BlockBytes})
			}
		}
	}
	return join(lost), nil
}

func logFile(number int) string {
	return fmt.Sprintf("/store/groups/%s/log/%016d.seg", testGroup, number)
}

// TestScrub flips a byte of each kind, with nothing of it being read by anybody: what is
// read back finds it, exactly those checkpoints are bad that need it, and the places that
// the newest lacks are told. Once the source has sent these, later checkpoints are whole,
// and the state says so.
func TestScrub(t *testing.T) {
	type place struct {
		file string
		at   int64
	}
	var places []place
	for at := int64(8); at < 26<<10; at += 761 * int64(stride(6)) {
		places = append(places, place{logFile(1), at}, place{logFile(2), at})
	}
	for at := int64(9); at < volumeBytes; at += 8192 * int64(stride(4)) {
		places = append(places, place{replicaFile(1), at})
	}
	sums := strings.TrimSuffix(replicaFile(2), ".raw") + ".sum"
	places = append(places, place{sums, 4096 + 4}, place{sums, 4096 + 22}, place{replicaFile(2), 4097})
	bads, healed, exact := 0, 0, 0
	for _, p := range places {
		synctest.Test(t, func(t *testing.T) {
			disk := faultdisk.New(512)
			s := scrubbed(t, disk, nil)
			w, err := openWith(scrubConfig(disk, nil))
			ok(t, err)
			defer func() { ok(t, w.store.Close()) }()
			if err := disk.Rot(p.file, p.at, 1); err != nil {
				return // there is nothing
			}
			ok(t, w.verify())
			if bytes, _ := w.store.ScrubStats(); bytes == 0 {
				t.Fatal("nothing was read")
			}
			newest := s.cut
			lost, err := w.group.Lost(1000)
			ok(t, err)
			bad, err := w.honest(s, true)
			if err != nil { // a record whose tables are damaged: as a whole it counts as damaged
				if _, err = w.honest(s, false); err != nil || strings.HasSuffix(p.file, ".raw") {
					t.Fatalf("%s at %d: %v", p.file, p.at, err)
				}
				return
			}
			exact++
			want, err := w.unread(newest)
			ok(t, err)
			if !slices.Equal(lost, want) {
				t.Fatalf("%s at %d: %v is said to be lost, %v is", p.file, p.at, lost, want)
			}
			bads += bad
			if lacks, _ := w.group.Lacks(); lacks != (len(want) > 0) || lacks != isDamage(w.group.State().Err) {
				t.Fatalf("%s at %d: lacks %v, state %+v", p.file, p.at, lacks, w.group.State())
			}
			if len(lost) == 0 {
				return
			}
			healed++
			s.open(false)
			for _, l := range lost {
				s.cover(l.Volume, l.Off, min(l.Len, volumeBytes-l.Off))
			}
			s.close()
			s.checkpoint()
			ok(t, w.feed(s, 3))
			again, err := w.honest(s, true)
			if err != nil || again != bad {
				t.Fatalf("%s at %d: %d were bad, and after a resync %d: %v", p.file, p.at, bad, again, err)
			}
			st := w.group.State()
			if lacks, _ := w.group.Lacks(); lacks || st.Err != nil || st.Bad != bad || !isDamage(st.Damage) {
				t.Fatalf("%s at %d: after a resync lacks %v, state %+v", p.file, p.at, lacks, st)
			}
		})
	}
	t.Logf("%d places, %d of them told exactly, %d checkpoints spoiled, %d healed", len(places), exact, bads, healed)
	if bads == 0 || healed == 0 || exact < len(places)/2 {
		t.Error("the test has lost its reach")
	}
}

// TestScrubRepairs: with parity all is as it was, whatever byte of a sealed segment rots,
// also what was known to be damaged before there was any. How long the segment is depends
// on how the rounds fell: what is looked at is all of it, and its last bytes.
func TestScrubRepairs(t *testing.T) {
	repaired, ends := 0, 0
	for at, last := int64(8), false; !last; at += 977 * int64(stride(7)) {
		synctest.Test(t, func(t *testing.T) {
			disk := faultdisk.New(512)
			p := &localParity{stripe.Local{FS: disk}, make(chan error, 1)}
			s := scrubbed(t, disk, p)
			w, err := openWith(scrubConfig(disk, nil)) // nothing is repaired yet
			ok(t, err)
			if size := sizeOf(t, disk, logFile(1)); at >= size-64 {
				at, last = size-1, true
			}
			ok(t, disk.Rot(logFile(1), at, 1))
			ok(t, w.verify())
			hurt := slices.ContainsFunc(w.group.segments.Segments(), func(i segment.Info) bool { return i.Err != nil })
			ok(t, w.store.Close())
			w, err = openWith(scrubConfig(disk, p))
			ok(t, err)
			defer func() { ok(t, w.store.Close()) }()
			ok(t, w.verify())
			bad, err := w.honest(s, true)
			v := w.group.Verification()
			_, repairs := w.store.ScrubStats()
			if st := w.group.State(); err != nil || bad != 0 || st.Err != nil || st.Damage != nil || v.Damaged != 0 || !v.Known {
				t.Fatalf("rot at %d: %d bad, %d repairs, state %+v, %+v: %v", at, bad, repairs, st, v, err)
			}
			switch info := w.group.segments.Segments()[0]; {
			case !hurt || info.State != segment.StateVerified || info.Err != nil:
				t.Fatalf("rot at %d: found %v, and then %+v", at, hurt, info)
			case repairs > 0:
				repaired++
			case last: // the trailer alone is made anew as the log is opened, without parity
				ends++
			default:
				t.Fatalf("rot at %d was not repaired", at)
			}
		})
		if t.Failed() {
			return
		}
	}
	if repaired < 17/stride(7) || ends != 1 { // 16 KiB and a footer
		t.Errorf("%d places were repaired, and %d trailers: the test has lost its reach", repaired, ends)
	}
}

// TestScrubByItself: nobody asks, and within the time of the policy it is found; a store
// that is opened again does not begin anew.
func TestScrubByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		cfg := scrubConfig(disk, nil)
		cfg.Still = false // else nobody keeps the clock
		cfg.Scrub = scrub.Policy{Every: 4 * time.Hour}
		w, err := openWith(cfg)
		ok(t, err)
		time.Sleep(time.Hour)
		first, _ := w.store.ScrubStats()
		if v := w.group.Verification(); v.Unread != 0 || first == 0 {
			t.Errorf("after an hour %d bytes were read, %+v", first, v)
		} else if age := w.store.ScrubAge(); age != v.Oldest || age == 0 {
			t.Errorf("something was not read for %v, want %v", age, v.Oldest)
		}
		ok(t, w.store.Close())
		if w, err = openWith(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if n, _ := w.store.ScrubStats(); n != 0 {
			t.Errorf("%d bytes were read again after an opening", n)
		}
		ok(t, disk.Rot(logFile(1), s.vital, 1))
		time.Sleep(4 * time.Hour)
		if st := w.group.State(); st.Damage == nil {
			t.Error("damage was not found in time")
		}
		ok(t, w.store.Close())
	})
}

// TestScrubIsPaced: it keeps to the cap, and beside intake to a part of it.
func TestScrubIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		scrubbed(t, disk, nil)
		cfg := scrubConfig(disk, nil)
		cfg.Scrub = scrub.Policy{Every: -1, Most: 16 << 10}
		w, err := openWith(cfg)
		ok(t, err)
		began := time.Now()
		ok(t, w.verify())
		bytes, _ := w.store.ScrubStats()
		if rate := float64(bytes) / time.Since(began).Seconds(); rate > 20<<10 || rate < 8<<10 {
			t.Errorf("%d bytes in %s", bytes, time.Since(began))
		}
		ok(t, w.store.Close())
	})
}

// TestScrubFaults has each operation of the disk fail, or the power go, while damage is
// found and repaired, and after it: no wrong byte is ever served, and in the end all is
// as it was.
func TestScrubFaults(t *testing.T) {
	for _, crash := range []bool{false, true} {
		for at := 1; ; at += stride(8) {
			done := false
			synctest.Test(t, func(t *testing.T) {
				disk := faultdisk.New(512)
				p := &localParity{stripe.Local{FS: disk}, make(chan error, 1)}
				s := scrubbed(t, disk, p)
				w, err := openWith(scrubConfig(disk, p))
				ok(t, err)
				ok(t, disk.Rot(logFile(1), s.vital, 1))
				count := 0
				var after *faultdisk.Disk
				disk.OnOp(func(faultdisk.Op, string) {
					if count++; count != at {
						return
					}
					if crash {
						after = disk.Crash(seeded(at), faultdisk.KeepSome)
						return
					}
					disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: []error{syscall.EIO, syscall.ENOSPC}[at%2]})
				})
				ok(t, w.verify())
				disk.OnOp(nil)
				done = count < at
				disk.Heal()
				for n, image := range s.images {
					if err := w.compare(n, image); err != nil && !isDamage(err) && !strings.Contains(err.Error(), "injected") && !isIO(err) {
						t.Fatalf("operation %d, checkpoint %d: %v", at, n, err)
					}
				}
				ok(t, w.store.Close())
				if after == nil {
					after = disk
				}
				p = &localParity{stripe.Local{FS: after}, make(chan error, 1)}
				w, err = openWith(scrubConfig(after, p))
				ok(t, err)
				ok(t, w.verify())
				bad, err := w.honest(s, true)
				if st := w.group.State(); err != nil || bad != 0 || st.Err != nil || st.Damage != nil {
					t.Fatalf("operation %d, crash %v: %d bad, state %+v: %v", at, crash, bad, st, err)
				}
				ok(t, w.store.Close())
				names, err := after.List(path.Dir(logFile(1)))
				ok(t, err)
				for _, n := range names {
					if strings.Contains(n, "repair") {
						t.Fatalf("operation %d, crash %v: %s is left", at, crash, n)
					}
				}
			})
			if done || t.Failed() {
				if at < 8 && !t.Failed() {
					t.Errorf("only %d operations", at)
				}
				break
			}
		}
	}
}

func isIO(err error) bool {
	return strings.Contains(err.Error(), syscall.EIO.Error()) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// TestVerifying: a checkpoint is verifying until the log it needs was read back, and is
// opened all the same; also after an opening.
func TestVerifying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		s := scrubbed(t, disk, nil)
		cfg := scrubConfig(disk, nil)
		w, err := openWith(cfg)
		ok(t, err)
		upto := w.group.Verified()
		ok(t, w.verify()) // what was not written down of it is found out
		if v := w.group.Verified(); v < upto {
			t.Errorf("verified up to %d, before %d of %d", v, upto, s.cut)
		}
		for range 3 {
			s.write(1)
			s.checkpoint()
		}
		ok(t, w.feed(s, 3))
		if upto = w.group.Verified(); upto == 0 || upto >= s.cut {
			t.Fatalf("verified up to %d of %d: the test has lost its reach", upto, s.cut)
		}
		for _, q := range []Query{{Limit: 3}, {Limit: 3, Newest: true}} {
			for _, state := range []index.State{"", index.Good, index.Verifying, index.Bad} {
				q.After, q.State = 0, state
				n := 0
				for {
					page, err := w.group.ListShown(q)
					ok(t, err)
					for _, cp := range page.Checkpoints {
						want := index.Good
						if cp.Number > upto {
							want = index.Verifying
						}
						if cp.State != want || state != "" && cp.State != state {
							t.Errorf("%+v: checkpoint %d is %s, verified up to %d", q, cp.Number, cp.State, upto)
						}
					}
					n += len(page.Checkpoints)
					if q.After = page.Next; q.After == 0 {
						break
					}
				}
				counts, err := w.group.CountsShown()
				ok(t, err)
				want := map[index.State]int{"": len(s.images), index.Good: counts.Good, index.Verifying: counts.Verifying, index.Bad: counts.Bad}[state]
				if n != want {
					t.Errorf("%+v: %d of %d", q, n, want)
				}
			}
		}
		if _, err := w.unread(s.cut); err != nil {
			t.Errorf("a verifying checkpoint does not open: %v", err)
		}
		for range 30 {
			s.write(6)
		}
		last := s.cut
		ok(t, w.feed(s, 3))
		time.Sleep(2 * readBackIdle)
		synctest.Wait()
		if v := w.group.Verified(); v != last {
			t.Errorf("verified up to %d of %d", v, last)
		}
		ok(t, w.store.Close())
	})
}
