package stripe

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// Any up to m blocks of a stripe lost, rotted, swapped or cut short: the same bytes. One
// more: an error, and never bytes.
func TestStripesComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Geometry{rapid.IntRange(1, 9).Draw(t, "k"), rapid.IntRange(1, 4).Draw(t, "m")}
		c, err := newCode(g)
		if err != nil {
			t.Fatal(err)
		}
		whole := make([][]byte, g.width())
		sums := make([]uint32, g.width())
		for i := range whole {
			whole[i] = noise(i, BlockBytes)
		}
		if err := c.encode(whole); err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			sums[i] = testID.sum(5, i, whole[i])
		}
		blocks := make([][]byte, len(whole))
		for i := range blocks {
			blocks[i] = slices.Clone(whole[i])
		}
		hurt := rapid.IntRange(0, g.M+1).Draw(t, "hurt")
		order := rapid.Permutation(indexes(g.width())).Draw(t, "order")[:hurt]
		for _, i := range order {
			switch rapid.IntRange(0, 3).Draw(t, "how") {
			case 0:
				blocks[i] = nil
			case 1:
				blocks[i][rapid.IntRange(0, BlockBytes-1).Draw(t, "at")] ^= 4
			case 2: // another block of the stripe stands in its place
				blocks[i] = slices.Clone(whole[(i+1)%len(whole)])
				if bytes.Equal(blocks[i], whole[i]) { // with k = 1 all are alike
					blocks[i][0]++
				}
			case 3:
				blocks[i] = blocks[i][:BlockBytes-1]
			}
		}
		missing, err := c.mend(testID, 5, blocks, sums, nil)
		if len(missing) != hurt {
			t.Fatalf("%d blocks found missing of %d", len(missing), hurt)
		}
		if hurt > g.M {
			if !errors.Is(err, ErrLost) {
				t.Fatalf("%d lost of %s: %v", hurt, g, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			if !bytes.Equal(blocks[i], whole[i]) {
				t.Fatalf("block %d differs", i)
			}
		}
	})
}

func indexes(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// A wrong table is no excuse for wrong bytes: what the code brings back is verified too.
func TestWhatComesBackIsVerified(t *testing.T) {
	c, err := newCode(Geometry{2, 1})
	ok(t, err)
	blocks := [][]byte{noise(1, BlockBytes), noise(2, BlockBytes), make([]byte, BlockBytes)}
	ok(t, c.encode(blocks))
	sums := []uint32{1, testID.sum(0, 1, blocks[1]), testID.sum(0, 2, blocks[2])}
	if _, err := c.mend(testID, 0, blocks, sums, nil); !errors.Is(err, ErrLost) || len(blocks[0]) != 0 {
		t.Errorf("mend against a wrong sum: %v, %d bytes", err, len(blocks[0]))
	}
}

func TestZonesCoverAFile(t *testing.T) {
	for _, blocks := range []int{1, 2, 31, 32, 33, 100, 4095, 4096, 4097, 9000} {
		length := int64(blocks)*BlockBytes - 5
		seen := make([]int, blocks)
		stripes := 0
		for _, z := range zonesOf(local, length) {
			if z.stripe != stripes {
				t.Fatalf("%d blocks: a zone begins at stripe %d, want %d", blocks, z.stripe, stripes)
			}
			stripes += z.stripes
			for j := range z.blocks {
				s, shard := z.at(j)
				if shard >= local.K || z.block(s, shard) != j {
					t.Fatalf("%d blocks: block %d is shard %d of stripe %d", blocks, j, shard, s)
				}
				seen[z.first+j]++
			}
		}
		if stripes != localStripes(local, length) || slices.ContainsFunc(seen, func(n int) bool { return n != 1 }) {
			t.Fatalf("%d blocks: %d stripes, want %d", blocks, stripes, localStripes(local, length))
		}
	}
}

func TestRepair(t *testing.T) {
	const size = 80*BlockBytes + 12345 // 81 blocks, 3 stripes of 27
	f := func(what string, wantBlocks int, wantErr error, hurt func(d *faultdisk.Disk)) {
		t.Helper()
		d, want := protectedDisk(t, size)
		hurt(d)
		got, found, err := repaired(d)
		if !errors.Is(err, wantErr) || err == nil && (!bytes.Equal(got, want) || len(found.Blocks) != wantBlocks) {
			t.Errorf("%s: %v, %v, same bytes: %v", what, err, found, bytes.Equal(got, want))
		}
	}
	rot := func(name string, at, n int64) func(*faultdisk.Disk) { // some of n bytes
		return func(d *faultdisk.Disk) {
			for end := at + n; at < end; at += BlockBytes { // a bit of each block
				ok(t, d.Rot(name, at, 1))
			}
		}
	}
	par := ParityName(testSegment)
	f("nothing", 0, nil, func(*faultdisk.Disk) {})
	f("one bit", 1, nil, rot(testSegment, 5*BlockBytes, 1))
	f("a torn region of 6 blocks", 6, nil, rot(testSegment, 9*BlockBytes, 6*BlockBytes))
	f("a torn region of 7 blocks", 0, ErrLost, rot(testSegment, 9*BlockBytes, 7*BlockBytes))
	f("the last byte", 1, nil, rot(testSegment, size-1, 1))
	f("front table", 0, nil, rot(par, 0, 4096))
	f("back table", 0, nil, rot(par, 4096+6*BlockBytes, 4096))
	f("both tables", 0, ErrCorrupt, func(d *faultdisk.Disk) { rot(par, 90, 1)(d); rot(par, 4096+6*BlockBytes+90, 1)(d) })
	f("front table and two blocks of a stripe", 2, nil, func(d *faultdisk.Disk) {
		rot(par, 100, 1)(d)
		rot(testSegment, 0, 1)(d)
		rot(testSegment, 3*BlockBytes, 1)(d)
	})
	f("a parity block and a block", 1, nil, func(d *faultdisk.Disk) { rot(par, 4096, 1)(d); rot(testSegment, 0, 1)(d) })
	f("a parity block and two blocks", 0, ErrLost, func(d *faultdisk.Disk) {
		rot(par, 4096, 1)(d)
		rot(testSegment, 0, 1)(d)
		rot(testSegment, 3*BlockBytes, 1)(d)
	})
	cut := func(name string, n int64) func(*faultdisk.Disk) {
		return func(d *faultdisk.Disk) {
			f, err := d.Open(name, 0)
			ok(t, err)
			ok(t, f.Truncate(n))
		}
	}
	f("cut short by 5 blocks", 6, nil, cut(testSegment, size-5*BlockBytes-12345+1))
	f("cut short by 8 blocks", 0, ErrLost, cut(testSegment, size-8*BlockBytes))
	f("grown", 0, nil, cut(testSegment, size+100))
	f("parity gone", 0, fs.ErrNotExist, func(d *faultdisk.Disk) { ok(t, d.Remove(par)) })
	f("a latent sector", 1, nil, func(d *faultdisk.Disk) {
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Only: func(n string) bool { return n == testSegment }, At: 12, Err: syscall.EIO})
	})
	d, _ := protectedDisk(t, size)
	if _, err := Repair(d, testSegment, Identity{7, 3, 98}, &bytes.Buffer{}, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("parity of another life: %v", err)
	}
}

func TestCheck(t *testing.T) {
	d, _ := protectedDisk(t, 40*BlockBytes)
	ok(t, d.Rot(testSegment, 7*BlockBytes+1, 1))
	ok(t, d.Rot(ParityName(testSegment), 4096+3*BlockBytes, 1))
	spent := 0
	f, err := Check(d, testSegment, testID, func(n int) error { spent += n; return nil })
	ok(t, err)
	if !slices.Equal(f.Blocks, []int{7}) || !slices.Equal(f.Parity, []int{3}) || spent != 44*BlockBytes {
		t.Errorf("%v, %d bytes paced", f, spent)
	}
}

// At every operation of Protect a crash, and an error: afterwards there is no parity, or
// all of it; the second Protect succeeds.
func TestProtectCrashAndErrors(t *testing.T) {
	const size = 3*BlockBytes + 700
	base := faultdisk.New(512)
	want := noise(1, size)
	put(t, base, testSegment, want)
	after := func(d *faultdisk.Disk, when string, done bool) {
		t.Helper()
		ok(t, d.Rot(testSegment, 100, 1))
		got, _, err := repaired(d)
		if err == nil && !bytes.Equal(got, want) || err != nil && (done || !errors.Is(err, fs.ErrNotExist)) {
			t.Fatalf("%s: %v", when, err)
		}
	}
	dry := base.Kill()
	ok(t, Protect(dry, testSegment, testID, nil))
	for n := 1; n <= 8; n++ { // opening, its size, reading
		d := base.Kill()
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpRead | faultdisk.OpOpen, At: n, Err: syscall.EIO})
		err := Protect(d, testSegment, testID, nil)
		d.Heal()
		after(d.Crash(seeded(n), faultdisk.KeepNone), "read error", err == nil)
	}
	for n := 1; n <= dry.Ops(); n++ {
		for _, keep := range []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn} {
			d := base.Kill()
			var crashed *faultdisk.Disk
			count := 0
			d.OnOp(func(faultdisk.Op, string) {
				if count++; count == n {
					crashed = d.Crash(seeded(n), keep)
				}
			})
			ok(t, Protect(d, testSegment, testID, nil))
			after(crashed, "crash", false)
			after(d.Crash(seeded(n), keep), "crash after", true)
		}
		for _, fault := range []faultdisk.Fault{{Err: syscall.EIO}, {Err: syscall.ENOSPC, Short: true}, {Err: syscall.EIO, Ever: true}} {
			d := base.Kill()
			fault.At = n
			d.Inject(fault)
			err := Protect(d, testSegment, testID, nil)
			d.Heal()
			after(d.Crash(seeded(n), faultdisk.KeepNone), "error", err == nil)
			ok(t, Protect(d, testSegment, testID, nil))
			after(d, "after the error", true)
		}
	}
}

// Parity that cannot be read stays: the file may have rotted since it was made. One that
// is damaged beyond use, or of another file, is made anew.
func TestParityIsKept(t *testing.T) {
	const size = 80 * BlockBytes
	d, want := protectedDisk(t, size)
	par := ParityName(testSegment)
	ok(t, d.Rot(testSegment, 5, 1))
	l := Local{FS: d}
	d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Only: func(n string) bool { return n == par }, Err: syscall.EIO})
	if err := l.Seal(testSegment, testID); !errors.Is(err, syscall.EIO) {
		t.Errorf("what does not open: %v", err)
	}
	d.Heal()
	ok(t, d.Rot(par, 90, 1)) // the other table stands
	ok(t, l.Seal(testSegment, testID))
	got, _, err := repaired(d)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("parity is not what it was: %v", err)
	}
	ok(t, d.Rot(testSegment, 5, 1))
	ok(t, d.Rot(par, sizeOf(t, d, par)-4000, 1))
	if is, err := l.Protects(testSegment, testID); is || err != nil {
		t.Errorf("without tables: %v, %v", is, err)
	}
	ok(t, l.Seal(testSegment, testID))
	ok(t, d.Rot(testSegment, 5, 1))
	if got, _, err := repaired(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("parity was not made anew: %v", err)
	}
	if is, err := l.Protects(testSegment, Identity{7, 3, 98}); is || err != nil {
		t.Errorf("of another life: %v, %v", is, err)
	}
}

func sizeOf(t *testing.T, d *faultdisk.Disk, name string) int64 {
	t.Helper()
	f, err := d.Open(name, 0)
	ok(t, err)
	defer f.Close()
	n, err := f.Size()
	ok(t, err)
	return n
}

// Every operation of protecting again, checking and repairing a damaged file fails once: an
// error, or the same bytes; and the parity is as good as before.
func TestLocalErrorAtEveryOperation(t *testing.T) {
	base, want := protectedDisk(t, 3*BlockBytes+700)
	ok(t, base.Rot(testSegment, BlockBytes+5, 1))
	run := func(d *faultdisk.Disk) error {
		l := Local{FS: d}
		var b bytes.Buffer
		err := l.Repair(testSegment, testID, &b)
		if err == nil && !bytes.Equal(b.Bytes(), want) {
			t.Fatal("repaired to other bytes")
		}
		f, cerr := Check(d, testSegment, testID, nil)
		if cerr == nil && !slices.Contains(f.Blocks, 1) {
			t.Fatalf("the damage was not found: %v", f)
		}
		return errors.Join(err, cerr)
	}
	for at := 1; ; at++ {
		d := base.Kill()
		fired := false
		seen := 0
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool {
			seen++
			fired = seen >= at
			return true
		}})
		err := run(d)
		d.Heal()
		if err := run(d); err != nil {
			t.Fatalf("after an error at %d: %v", at, err)
		}
		if !fired {
			ok(t, err)
			return
		}
	}
}

// What is protected is not protected again; when that cannot be seen it is an error, and the
// parity stays.
func TestLocalSealErrors(t *testing.T) {
	base, _ := protectedDisk(t, 3*BlockBytes)
	for at := 1; at <= 4; at++ {
		d := base.Kill()
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO})
		if err := (Local{FS: d}).Seal(testSegment, testID); err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("error at %d: %v", at, err)
		}
		d.Heal()
		if f, err := Check(d, testSegment, testID, nil); err != nil || len(f.Blocks)+len(f.Parity) > 0 {
			t.Fatalf("error at %d: %v, %v", at, f, err)
		}
	}
	d := base.Kill()
	before := d.Ops()
	ok(t, Local{FS: d}.Seal(testSegment, testID))
	if d.Ops() != before {
		t.Error("what is protected was protected again")
	}
}
