package replica

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// errorKinds are the faults that every operation is tried with.
var errorKinds = []faultdisk.Fault{
	{Ops: faultdisk.OpAny, Err: syscall.EIO},
	{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
	{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true},
}

// failEach runs attempt on a disk of its own for each kind of error at each operation, until
// an attempt ends before its fault. attempt disarms the fault when it has had its effect.
func failEach(t *testing.T, disk func() *faultdisk.Disk, attempt func(d *faultdisk.Disk) (failed error, wrong error)) {
	t.Helper()
	for _, fault := range errorKinds {
		for at := 1; ; at++ {
			d, seen := disk(), 0
			fault.At, fault.Only = at, func(string) bool { seen++; return true }
			d.Inject(fault)
			failed, wrong := attempt(d)
			if wrong != nil {
				t.Fatalf("%v at operation %d (%#x, ever %v; %v): %v", fault.Err, at, fault.Ops, fault.Ever, failed, wrong)
			}
			if seen < at {
				must(t, failed)
				t.Logf("%v (%#x, ever %v): %d errors", fault.Err, fault.Ops, fault.Ever, at-1)
				break
			}
		}
	}
}

// firstSync is the life of a replica that no history stands over: made, written, grown,
// verified, opened again. What it should be after that is known.
type firstSync struct {
	disk    *faultdisk.Disk
	image   []byte
	created bool
	clean   bool // all of image is durable
}

const grownBytes = testBytes + 5*BlockBytes

func (s *firstSync) run() error {
	v, err := Create(s.disk, "/r", testPlace, testBytes)
	if err != nil {
		return err
	}
	s.created, s.clean, s.image = true, true, make([]byte, testBytes)
	err = errors.Join(s.write(v), v.Close())
	if err == nil {
		err = s.reopen()
	}
	return err
}

// inOrder does steps until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (s *firstSync) write(v *Volume) error {
	s.clean = false
	data := make([]byte, 6*BlockBytes+300)
	for i := range data {
		data[i] = byte(i*7 + 1)
	}
	copy(s.image[100:], data)
	clear(s.image[2*BlockBytes : 5*BlockBytes+50])
	return inOrder(
		func() error { return v.Write(data, 100) },
		func() error { return v.Zero(2*BlockBytes, 3*BlockBytes+50) },
		v.Sync,
		func() error { s.clean = true; return v.Grow(grownBytes) },
		func() error {
			s.clean = false
			s.image = append(s.image, make([]byte, grownBytes-testBytes)...)
			copy(s.image[testBytes-200:], data[:900])
			return v.Write(data[:900], testBytes-200)
		},
		v.Sync,
		func() error { s.clean = true; return s.verify(v) },
	)
}

// verify finds no damage where there is none, whatever cannot be read.
func (s *firstSync) verify(v *Volume) error {
	found, err := v.Verify(0, v.Bytes(), nil)
	for _, d := range found {
		err = errors.Join(err, d.Err)
	}
	return errors.Join(err, compare(v, s.image))
}

func (s *firstSync) reopen() error {
	v, err := Open(s.disk, "/r", testPlace, int64(len(s.image)))
	if err != nil {
		return err
	}
	return errors.Join(s.verify(v), v.Close())
}

// Every operation of a first synchronisation fails: what is made and durable stays so over a
// crash, nothing is called damage that is none, and done again it is whole.
func TestFirstSyncErrorAtEveryOperation(t *testing.T) {
	failEach(t, func() *faultdisk.Disk { return newDisk(t) }, func(d *faultdisk.Disk) (failed, wrong error) {
		s := &firstSync{disk: d}
		failed = s.run()
		d.Heal()
		if errors.Is(failed, ErrCorrupt) {
			return failed, errors.New("an error is called damage")
		}
		power := &firstSync{disk: d.Crash(seeded(1), faultdisk.KeepNone), image: s.image}
		switch {
		case s.created && s.clean:
			wrong = power.reopen()
		case s.created:
			if v, err := Open(power.disk, "/r", testPlace, int64(len(s.image))); err != nil {
				wrong = err
			} else {
				wrong = v.Close()
			}
		}
		if wrong == nil {
			again := &firstSync{disk: d.Crash(seeded(2), faultdisk.KeepSome)}
			if wrong = again.run(); wrong == nil {
				again.disk = again.disk.Crash(seeded(3), faultdisk.KeepNone)
				wrong = again.reopen()
			}
		}
		return failed, wrong
	})
}

// Every operation of opening a promoter over a pass that a kill ended fails: nothing changes
// that the log does not cover, and the next opening ends the pass.
func TestOpenPromoterErrorAtEveryOperation(t *testing.T) {
	rng := seeded(4)
	w := newWorld(rng)
	s, err := openSite(build(t, w))
	must(t, err)
	w.pass(rng)
	var killed []*faultdisk.Disk // with images that count
	s.disk.OnOp(func(faultdisk.Op, string) {
		k := s.disk.Kill()
		d := doubleWrite{fs: k.Kill(), dir: "/r", group: 7}
		if images, _ := d.read(); len(images) > 0 && len(killed) < 12 {
			killed = append(killed, k)
		}
	})
	must(t, s.promote(w, 3))
	if len(killed) == 0 {
		t.Fatal("no images")
	}
	for _, base := range []*faultdisk.Disk{killed[0], killed[len(killed)/2]} {
		failEach(t, base.Kill, func(d *faultdisk.Disk) (failed, wrong error) {
			s, failed := openSite(d)
			if failed == nil {
				s.close()
			}
			d.Heal()
			next, wrong := openSite(d.Crash(seeded(1), faultdisk.KeepSome))
			if wrong == nil {
				wrong = inOrder(func() error { return next.check(w) }, func() error { return next.promote(w, 5) }, func() error { return next.equals(w.after) })
			}
			return failed, wrong
		})
	}
}

// Every operation of promoting what is lost fails: done again, exactly that is damage.
func TestLostErrorAtEveryOperation(t *testing.T) {
	rng := seeded(5)
	w := newWorld(rng)
	base := build(t, w)
	some := bytes.Repeat([]byte{7}, 50)
	changes := []Change{{Off: BlockBytes + 100, Len: 50, Data: some}, {Off: 3*BlockBytes + 1, Len: 700, Lost: true}, {Off: 6 * BlockBytes, Len: BlockBytes, Lost: true}}
	want := bytes.Clone(w.base[0])
	copy(want[BlockBytes+100:], some)
	run := func(d *faultdisk.Disk) error {
		s, err := openSite(d)
		if err != nil {
			return err
		}
		defer s.close()
		_, err = s.p.Apply(s.volumes[0], changes)
		return errors.Join(err, s.p.Finish())
	}
	failEach(t, base.Kill, func(d *faultdisk.Disk) (failed, wrong error) {
		failed = run(d)
		d.Heal()
		after := d.Crash(seeded(1), faultdisk.KeepSome)
		if err := run(after); err != nil {
			return failed, err
		}
		s, err := openSite(after.Crash(seeded(2), faultdisk.KeepNone))
		if err != nil {
			return failed, err
		}
		defer s.close()
		for b := range int64(10) {
			lost := b == 3 || b == 6
			got := make([]byte, BlockBytes)
			err := s.volumes[0].ReadAt(got, b*BlockBytes)
			if lost != errors.Is(err, ErrCorrupt) || !lost && (err != nil || !bytes.Equal(got, want[b*BlockBytes:(b+1)*BlockBytes])) {
				return failed, fmt.Errorf("block %d: %w", b, err)
			}
		}
		return failed, nil
	})
}
