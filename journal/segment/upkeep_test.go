package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sealedLog returns an open log of n segments, all but the last verified, and what it holds.
func sealedLog(t *testing.T, disk *faultdisk.Disk, n int) (*Log, []placed) {
	t.Helper()
	ok(t, errors.Join(disk.Mkdir("store"), disk.SyncDir("/")))
	o := testOptions()
	o.OpenFiles = 4
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var recs []placed
	for len(l.Segments()) < n {
		more, _ := mixed(t, l, 7)
		recs = append(recs, more...)
	}
	return l, recs
}

// Every byte of a segment is looked at: one that rots is told, with the record that it
// is in; when it is well again that is told too.
func TestVerify(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 3)
	s := l.Segments()[1]
	name := l.path(s.Number)
	size := sizeOf(t, disk, name)
	for off := int64(0); off < size; off += 61 * sample {
		ok(t, disk.Rot(name, off, 1))
		damage, err := l.Verify(s.Number, nil)
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, record.ErrCorrupt) {
			t.Fatalf("byte %d rots: %v", off, err)
		}
		at, inRecord := s.First+Pos(off-pageBytes), false
		for _, p := range recs {
			inRecord = inRecord || at >= s.First && at < s.End && at >= p.pos && at < p.pos+Pos(len(p.rec))
		}
		hit := false
		for _, d := range damage {
			hit = hit || at >= d.From && at < d.To
		}
		if hit != inRecord || !inRecord && len(damage) > 0 {
			t.Fatalf("byte %d rots, place %s, in a record %v: damage %v", off, at, inRecord, damage)
		}
		if l.Segments()[1].State != StateBad {
			t.Fatalf("byte %d rots: the segment is %s", off, l.Segments()[1].State)
		}
		ok(t, disk.Rot(name, off, 1))
		if damage, err := l.Verify(s.Number, nil); err != nil || len(damage) > 0 || l.Segments()[1].State != StateVerified {
			t.Fatalf("byte %d is well again: %v, %v, %s", off, damage, err, l.Segments()[1].State)
		}
	}
	for _, number := range []uint64{0, 3, 4} {
		if _, err := l.Verify(number, nil); !errors.Is(err, ErrRange) {
			t.Errorf("segment %d: %v, want ErrRange", number, err)
		}
	}
}

// Without a table of the records, as after an opening, damage is told as the row of
// records that cannot be read on from.
func TestVerifyWithoutTable(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes, o.Go = 1<<20, func(func()) {} // nothing is sealed
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	recs, edges := mixed(t, l, 40)
	ok(t, l.Close())
	l, err = Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for _, i := range []int{1, 17, 33} {
		p := recs[i]
		ok(t, disk.Rot(l.path(1), offset(Start, p.pos)+40, 1))
		damage, err := l.Verify(1, nil)
		if err == nil || len(damage) != 1 || damage[0].From != p.pos {
			t.Fatalf("record %d: damage %v, %v; want from %s", i, damage, err, p.pos)
		}
		end := p.pos + Pos(len(p.rec))
		for _, e := range edges {
			if e >= end {
				if damage[0].To < end || damage[0].To > e {
					t.Errorf("record %d: damage to %s, want the rest of its round, to %s", i, damage[0].To, e)
				}
				break
			}
		}
		ok(t, disk.Rot(l.path(1), offset(Start, p.pos)+40, 1))
	}
}

func TestVerifyPace(t *testing.T) {
	disk := faultdisk.New(512)
	l, _ := sealedLog(t, disk, 3)
	read := 0
	_, err := l.Verify(1, func(n int) error { read += n; return nil })
	ok(t, err)
	if size := sizeOf(t, disk, l.path(1)); int64(read) < size-2*pageBytes || int64(read) > 2*size {
		t.Errorf("%d bytes were read of %d", read, size)
	}
	stop := errors.New("stop")
	if damage, err := l.Verify(1, func(int) error { return stop }); !errors.Is(err, stop) || len(damage) > 0 {
		t.Errorf("stopped: %v, %v", damage, err)
	}
	if s := l.Segments()[0]; s.State != StateVerified {
		t.Errorf("stopped, and the segment is %s", s.State)
	}
	ok(t, l.Close())
	if _, err := l.Verify(1, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A segment that is dropped while it is read back is not read to its end: that may take long,
// and until then its space is taken. Its file is used again.
func TestVerifyEndsWithTheSegment(t *testing.T) {
	l, pool, _ := recycler(t, faultdisk.New(512), 3)
	reads := 0
	damage, err := l.Verify(1, func(int) error {
		if reads++; reads == 1 {
			ok(t, l.Drop(l.Segments()[1].First))
		}
		return nil
	})
	if !errors.Is(err, ErrRange) || len(damage) > 0 || reads != 1 {
		t.Errorf("%d reads, damage %v, %v", reads, damage, err)
	}
	if files, _ := pool.Spare(); files != 1 {
		t.Errorf("%d files are kept for use again", files)
	}
	ok(t, l.Close())
}

// writeAll is a build that writes p.
func writeAll(p []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		for len(p) > 0 { // in odd parts
			n, err := w.Write(p[:min(len(p), 5001)])
			if err != nil {
				return err
			}
			p = p[n:]
		}
		return nil
	}
}

// A rotten file is replaced by a good copy, and by nothing else.
func TestReplace(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 4)
	name := l.path(2)
	good := fileBytes(t, disk, name)
	ok(t, disk.Rot(name, 2*pageBytes+100, 1))
	rotten := fileBytes(t, disk, name)
	refuse := func(what string, build func(io.Writer) error) {
		t.Helper()
		if err := l.Replace(2, build); err == nil {
			t.Fatalf("%s: it is taken", what)
		}
		if !bytes.Equal(fileBytes(t, disk, name), rotten) {
			t.Fatalf("%s: the file was touched", what)
		}
		if names, _ := disk.List(testDir); strings.Contains(fmt.Sprint(names), repairSuffix) {
			t.Fatalf("%s: left behind: %q", what, names)
		}
	}
	footerAt := int(offset(l.Segments()[1].First, l.Segments()[1].End))
	for off := 0; off < footerAt; off += 173 * sample {
		bad := bytes.Clone(good)
		bad[off] ^= 4
		refuse(fmt.Sprintf("another byte at %d", off), writeAll(bad))
	}
	refuse("the rotten file", writeAll(rotten))
	refuse("another segment", writeAll(fileBytes(t, disk, l.path(3))))
	refuse("nothing", writeAll(nil))
	refuse("a part", writeAll(good[:footerAt-1]))
	refuse("an error", func(w io.Writer) error { return errors.Join(writeAll(good)(w), io.ErrClosedPipe) })
	if err := l.Replace(4, writeAll(good)); !errors.Is(err, ErrRange) {
		t.Errorf("the open segment: %v", err)
	}
	if _, err := l.Verify(2, nil); err == nil {
		t.Error("nothing was repaired, and it is well")
	}
	for _, p := range [][]byte{good, good[:footerAt], append(bytes.Clone(good[:footerAt]), make([]byte, 9999)...)} {
		ok(t, l.Replace(2, writeAll(p)))
		if !bytes.Equal(fileBytes(t, disk, name), good) || l.Segments()[1].State != StateVerified {
			t.Errorf("a copy of %d bytes: the file is another", len(p))
		}
		damage, err := l.Verify(2, nil)
		if err != nil || damage != nil {
			t.Errorf("repaired: %v, %v", damage, err)
		}
	}
	for _, p := range recs {
		got := make([]byte, len(p.rec))
		if err := l.ReadAt(got, p.pos); err != nil || !bytes.Equal(got, p.rec) {
			t.Errorf("record at %s: %v", p.pos, err)
		}
	}
}

// Power fails, or a call does, at every operation of a Replace: the log is whole.
func TestReplaceCrashesAndErrors(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(4), 1)
	ok(t, err)
	ok(t, f.run(12, 0))
	ok(t, errors.Join(f.commit(), f.raise(0)))
	good := fileBytes(t, disk, f.l.path(1))
	everywhere(t, disk, func(d *faultdisk.Disk) (run func() error, check func(*faultdisk.Disk) error) {
		m, l, _, err := f.recovered(d)
		ok(t, err)
		return func() error { return l.Replace(1, writeAll(good)) },
			func(d *faultdisk.Disk) error {
				_, l, _, err := m.recovered(d)
				if err != nil {
					return err
				}
				_, err = l.Verify(1, nil)
				return err
			}
	})
}

// everywhere runs an operation of a log on a copy of disk, with power failing at each of its
// operations and of the recovery after, and with each of them failing, and has what
// is left checked.
func everywhere(t *testing.T, disk *faultdisk.Disk, make func(*faultdisk.Disk) (run func() error, check func(*faultdisk.Disk) error)) {
	t.Helper()
	rng, crashes := seeded(1), 0
	d := disk.Kill()
	run, check := make(d)
	d.OnOp(func(op faultdisk.Op, name string) {
		for _, keep := range append(keeps, faultdisk.KeepSome, faultdisk.KeepSome) {
			crashes++
			where := fmt.Sprintf("operation %d (%#x of %s), keep %d", d.Ops(), op, name, keep)
			after := d.Crash(rng, keep)
			after.OnOp(func(op faultdisk.Op, name string) {
				if after.Ops()%sample != 0 {
					return
				}
				crashes++
				if err := check(after.Crash(rng, keeps[rng.IntN(len(keeps))])); err != nil {
					t.Fatalf("%s; then operation %d (%#x of %s) of the recovery: %v", where, after.Ops(), op, name, err)
				}
			})
			if err := check(after); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
		}
	})
	ok(t, run())
	d.OnOp(nil)
	ok(t, check(d.Kill()))
	ok(t, check(d.Crash(rng, faultdisk.KeepNone)))
	errs := 0
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpAny, Err: syscall.EIO, Ever: true},
	} {
		for at := 1; ; at += sample {
			d := disk.Kill()
			run, check := make(d)
			fired := false
			fault.At = 1
			seen, from := 0, at
			fault.Only = func(string) bool {
				seen++
				fired = fired || seen >= from
				return seen >= from
			}
			d.Inject(fault)
			err := run()
			d.Heal()
			if !fired {
				break
			}
			errs++
			for _, after := range []*faultdisk.Disk{d.Crash(rng, faultdisk.KeepNone), d.Crash(rng, faultdisk.KeepSome), d.Kill()} {
				if cerr := check(after); cerr != nil {
					t.Fatalf("error %v at %d (%v): %v", fault.Err, at, err, cerr)
				}
			}
			if err != nil {
				if err := run(); err != nil {
					t.Fatalf("error %v at %d, then again: %v", fault.Err, at, err)
				}
			}
			if cerr := check(d.Crash(rng, faultdisk.KeepNone)); cerr != nil {
				t.Fatalf("error %v at %d, again, and a crash: %v", fault.Err, at, cerr)
			}
		}
	}
	t.Logf("%d crashes, %d errors", crashes, errs)
}

// Appends, reads and replays go on beside the verifying, replacing, folding and dropping of
// segments: no read gives other bytes than were written there, none fails but as
// ErrRange.
func TestUpkeepBesideReads(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	o := testOptions()
	o.Go, o.OpenFiles = nil, 2
	var err error
	o.Spare, err = OpenPool(disk, testSpare, 3)
	ok(t, err)
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	stop := make(chan struct{})
	ended := make(chan error, 2)
	go func() { // a reader of everything
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			err := l.Replay(l.Segments()[0].First, l.Durable(), ReplayOptions{}, func(pos Pos, r record.Record) error {
				p := make([]byte, r.Size)
				if err := l.ReadAt(p, pos); errors.Is(err, ErrRange) {
					return err
				} else if err != nil {
					return err
				}
				got, err := record.Parse(p)
				if err == nil {
					err = got.VerifyPayload()
				}
				if err != nil && l.Segments()[0].First <= pos { // a fold may have other records there
					if _, _, ok := l.Life(pos); ok {
						return fmt.Errorf("at %s: %w", pos, err)
					}
				}
				return nil
			})
			if err != nil && !errors.Is(err, ErrRange) {
				ended <- err
				return
			}
		}
	}()
	rng := seeded(1)
	for range 60 {
		mixed(t, l, 6)
		segs := l.Segments()
		switch s := segs[rng.IntN(len(segs))]; rng.IntN(4) {
		case 0:
			if _, err := l.Verify(s.Number, nil); err != nil && !errors.Is(err, ErrRange) {
				t.Error("Verify: ", err)
			}
		case 1:
			if err := l.Replace(s.Number, writeAll(fileBytes(t, disk, l.path(s.Number)))); err != nil && !errors.Is(err, ErrRange) && s.State == StateVerified {
				t.Error("Replace: ", err)
			}
		case 2:
			if len(segs) > 12 {
				ok(t, l.Drop(segs[len(segs)/3].First))
			}
		case 3:
			if n := len(segs); n > 6 {
				a := rng.IntN(n - 4)
				ok(t, l.ReplaceRange(segs[a].Number, segs[a+2].Last, l.keepHalf(segs[a].First, segs[a+2].To, &[]placed{}), nil))
			}
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error("reading: ", err)
	}
	ok(t, l.Close())
	o.Spare = nil // it is of the disk as it was
	l, err = Open(disk.Kill(), testDir, testGroup, Watermark{First: l.mu.segs[0].First}, o, func(Pos, record.Record) error { return nil })
	ok(t, err)
}

// keepHalf is a build that keeps each second record of the range, and all control records, and notes where.
func (l *Log) keepHalf(from, to Pos, kept *[]placed) func(add func([]byte) (Pos, error)) error {
	return func(add func([]byte) (Pos, error)) error {
		n := 0
		*kept = nil
		return l.Replay(from, to, ReplayOptions{}, func(pos Pos, r record.Record) error {
			if n++; n%2 == 0 && !isControl(r.Kind) {
				return nil
			}
			p := make([]byte, r.Size)
			if err := l.ReadAt(p, pos); err != nil {
				return err
			}
			at, err := add(p)
			*kept = append(*kept, placed{at, p})
			return err
		})
	}
}
