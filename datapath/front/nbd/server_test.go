package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

// ways are the ways to talk that both sides know.
var ways = map[string]asking{
	"go+structured":   {structured: true, info: true},
	"go+simple":       {info: true},
	"name+structured": {structured: true},
	"name+simple":     {},
}

// TestOneVolume runs the same seeded operations over every way to talk and every
// kind of socket; each must leave the volume that an array of bytes holds.
func TestOneVolume(t *testing.T) { both(t, oneVolume) }

func oneVolume(t *testing.T) {
	for way, ask := range ways {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(network+"/"+way, func(t *testing.T) {
				d := memdisk.NewSpy(6<<20 + 512)
				s := serve(t, Export{Name: "v", Device: d})
				uri := s.uri("v")
				if network == "tcp" {
					u := URI{Network: "tcp", Export: "v"}
					t.Cleanup(s.listen(t, "tcp", "127.0.0.1:0", &u.Address))
					uri = u.String()
				}
				c, err := dial(t.Context(), uri, ask)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if c.Size() != d.Size() || c.ReadOnly() {
					t.Errorf("size %d, read-only %v", c.Size(), c.ReadOnly())
				}
				churn(t, c, d, 11)
				if open, mistakes := d.State(); open != 0 || mistakes != nil {
					t.Errorf("%d writes left open, %q", open, mistakes)
				}
			})
		}
	}
}

// churn carries out seeded operations one by one, and compares with an array.
func churn(t *testing.T, c *Client, d *memdisk.Spy, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	want := make([]byte, d.Size())
	for i := range 400 {
		n := rng.Int64N(20_000)
		if rng.IntN(20) == 0 {
			n = rng.Int64N(3 << 20) // several pieces
		}
		off := rng.Int64N(d.Size() - n + 1)
		part := want[off:][:n]
		var err error
		switch rng.IntN(8) {
		case 0:
			err = c.WriteZeroes(off, n, rng.IntN(2) == 0)
			clear(part)
		case 1:
			err = c.Trim(off, n)
			clear(part)
		case 2:
			err = c.Flush()
		case 3, 4:
			got := make([]byte, n)
			if _, err = c.ReadAt(got, off); !bytes.Equal(got, part) {
				t.Fatalf("operation %d: read %d at %d: other bytes", i, n, off)
			}
		default:
			noise(part, rng)
			_, err = c.WriteAt(part, off)
		}
		if err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
	if !bytes.Equal(content(t, d.Disk), want) {
		t.Error("the volume holds other bytes")
	}
}

func TestCommandsReachDevice(t *testing.T) { both(t, commandsReachDevice) }

func commandsReachDevice(t *testing.T) {
	d := memdisk.NewSpy(1 << 20)
	s := serve(t, Export{Device: d})
	c := s.dial(t, "")
	f := func(err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		if got := d.Taken(); !slices.Equal(got, want) {
			t.Errorf("the device was asked %q, want %q", got, want)
		}
	}
	_, err := c.WriteAt(make([]byte, 513), 511)
	f(err, "write 511 513 fua=false")
	_, err = c.WriteFUA(make([]byte, 4096), 0)
	f(err, "write 0 4096 fua=true")
	f(c.WriteZeroes(512, 1024, true), "zero 512 1024 unmap=true fua=false")
	f(c.WriteZeroes(512, 1024, false), "zero 512 1024 unmap=false fua=false")
	f(c.Trim(0, 1<<20), "trim 0 1048576 fua=false")
	f(c.Flush(), "flush")
	f(c.one(cmdTrim, flagFUA, 0, 4096), "trim 0 4096 fua=true")
	f(c.one(cmdWriteZeroes, flagFUA|flagNoHole, 0, 4096), "zero 0 4096 unmap=false fua=true")
	for _, cmd := range []uint16{cmdTrim, cmdWriteZeroes, cmdRead, cmdWrite} { // of no bytes: done, and nothing to do
		f(c.one(cmd, 0, 4096, 0))
	}
}

func TestDeviceErrors(t *testing.T) { both(t, deviceErrors) }

func deviceErrors(t *testing.T) {
	d := memdisk.NewSpy(4 << 20)
	var fails error
	d.Before = func(string, int64, int64) error { return fails }
	s := serve(t, Export{Device: d})
	for way, ask := range ways {
		c := s.dialAsking(t, "", ask)
		f := func(device, want error, code uint32) {
			t.Helper()
			p := make([]byte, 3<<20)
			check := func(op string, err error) {
				t.Helper()
				var e *Error
				if !errors.As(err, &e) || e.Code != code || want != nil && !errors.Is(err, want) {
					t.Errorf("%s: %s with %v: %v", way, op, device, err)
				}
			}
			fails = device
			_, err := c.WriteAt(p, 0)
			check("write", err)
			_, err = c.ReadAt(p, 0)
			check("read", err)
			check("zero", c.WriteZeroes(0, 512, true))
			check("trim", c.Trim(0, 512))
			check("flush", c.Flush())
			if c.h.allocation {
				check("extents", c.BlockStatus(0, 4096, func(int64, bool) bool { return true }))
			}
			fails = nil
			d.Refuse(device)
			_, err = c.WriteAt(p[:512], 0)
			check("commit", err)
			d.Refuse(nil)
			if _, err := c.ReadAt(p, 1<<20); err != nil { // and the connection goes on
				t.Errorf("%s: after %v: %v", way, device, err)
			}
		}
		f(front.ErrNoSpace, front.ErrNoSpace, wireNoSpace)
		f(fmt.Errorf("disk: %w", front.ErrReadOnly), front.ErrReadOnly, wirePerm)
		f(errors.New("boom"), nil, wireIO)
	}
	if open, _ := d.State(); open != 0 {
		t.Errorf("%d writes left open", open)
	}
}

// TestReadFailsMidway: some pieces of a structured read are on their way when the
// device fails; the client gets an error and no bytes.
func TestReadFailsMidway(t *testing.T) { both(t, readFailsMidway) }

func readFailsMidway(t *testing.T) {
	d := memdisk.NewSpy(4 * pieceBytes)
	d.Before = func(op string, off, _ int64) error {
		if op == "read" && off >= 2*pieceBytes {
			return errors.New("boom")
		}
		return nil
	}
	c := serve(t, Export{Device: d}).dial(t, "")
	var e *Error
	if _, err := c.ReadAt(make([]byte, 4*pieceBytes), 0); !errors.As(err, &e) || e.Code != wireIO {
		t.Errorf("read over a bad place: %v", err)
	}
	if _, err := c.ReadAt(make([]byte, 2*pieceBytes), 0); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) { both(t, readOnly) }

func readOnly(t *testing.T) {
	d := memdisk.NewSpy(1 << 20)
	d.Sealed = true
	s := serve(t, Export{Device: d})
	c := s.dial(t, "")
	if !c.ReadOnly() {
		t.Error("the client is not told")
	}
	f := func(err error) {
		t.Helper()
		if !errors.Is(err, front.ErrReadOnly) {
			t.Errorf("want read-only, got %v", err)
		}
	}
	_, err := c.WriteAt(make([]byte, 4096), 0)
	f(err)
	f(c.WriteZeroes(0, 4096, true))
	f(c.Trim(0, 4096))
	if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	if calls := d.Taken(); calls != nil {
		t.Errorf("the device was asked %q", calls)
	}
}

func TestSimpleRepliesToWhoAsksForNoOther(t *testing.T) { both(t, simpleRepliesToWhoAsksForNoOther) }

func simpleRepliesToWhoAsksForNoOther(t *testing.T) {
	d := memdisk.NewSpy(4 << 20)
	put(t, d.Disk, bytes.Repeat([]byte{7}, 3<<20), 0)
	r := serve(t, Export{Name: "v", Device: d}).raw(t)
	r.begin("v", false)
	for _, n := range []uint32{512, 64 << 10, 3 << 20} { // the last in one piece all the same
		if code := r.simple(request{cmd: cmdRead, n: n}, nil); code != wireOK {
			t.Fatalf("read: %d", code)
		}
		if p := r.get(int(n)); !bytes.Equal(p, bytes.Repeat([]byte{7}, int(n))) {
			t.Error("other bytes")
		}
	}
	if code := r.simple(request{cmd: cmdRead, flags: flagDF, n: 512}, nil); code != wireInvalid {
		t.Errorf("DF without structured replies: %d", code)
	}
	if code := r.simple(request{cmd: cmdBlockStatus, n: 512}, nil); code != wireInvalid {
		t.Errorf("block status without a context: %d", code)
	}
	if code := r.simple(request{cmd: cmdWrite, n: 512}, make([]byte, 512)); code != wireOK {
		t.Errorf("write of 512 bytes: %d", code)
	}
}

func TestChunks(t *testing.T) { both(t, chunks) }

func chunks(t *testing.T) {
	d := memdisk.NewSpy(4 << 20)
	r := serve(t, Export{Name: "v", Device: d}).raw(t)
	r.begin("v", true)
	f := func(q request, want ...string) {
		t.Helper()
		q.cookie = 0xfeed
		r.send(q.appendTo(nil))
		for _, w := range want {
			flags, kind, cookie, p := r.chunk()
			got := fmt.Sprintf("%d/%#x/%d", flags, kind, len(p))
			switch {
			case kind == chunkData:
				got += fmt.Sprintf("@%d", binary.BigEndian.Uint64(p))
			case kind == chunkError:
				got += fmt.Sprintf(":%d", binary.BigEndian.Uint32(p))
			case kind == chunkBlockStatus:
				got += fmt.Sprintf(":%x", p)
			}
			if got != w || cookie != q.cookie {
				t.Errorf("%+v: chunk %s for %#x, want %s", q, got, cookie, w)
			}
		}
	}
	f(request{cmd: cmdRead, off: 512, n: 512}, "1/0x1/520@512")
	f(request{cmd: cmdRead, n: 0}, "1/0x0/0")
	f(request{cmd: cmdRead, off: 1, n: 2*pieceBytes + 1}, "0/0x1/1048584@1", "0/0x1/1048584@1048577", "1/0x1/9@2097153")
	f(request{cmd: cmdRead, flags: flagDF, n: pieceBytes}, "1/0x1/1048584@0")
	f(request{cmd: cmdRead, flags: flagDF, n: pieceBytes + 1}, "1/0x8001/6:75")
	f(request{cmd: cmdRead, off: 4 << 20, n: 1}, "1/0x8001/6:22")
	put(t, d.Disk, []byte{1}, 1<<20)
	f(request{cmd: cmdBlockStatus, n: 2 << 20}, "1/0x5/28:00000001"+"0010000000000003"+"0001000000000000"+"000f000000000003")
	f(request{cmd: cmdBlockStatus, flags: flagReqOne, off: 1 << 20, n: 2 << 20}, "1/0x5/12:00000001"+"0001000000000000")
	f(request{cmd: cmdBlockStatus, n: 0}, "1/0x8001/6:22")
	f(request{cmd: cmdBlockStatus, off: 4 << 20, n: 1}, "1/0x8001/6:22")
	r.send(request{cmd: cmdWriteZeroes, flags: flagFastZero, n: 512, cookie: 9}.appendTo(nil))
	if code := r.simpleReply(9); code != wireNotSup {
		t.Errorf("FAST_ZERO: %d", code)
	}
}

func TestBlockStatus(t *testing.T) { both(t, blockStatus) }

func blockStatus(t *testing.T) {
	d := memdisk.NewSpy(1 << 30)
	var want []string
	for i := int64(0); i < 6000; i++ { // more extents than one answer holds
		put(t, d.Disk, []byte{1}, i*2*64<<10)
		want = append(want, "65536 false", "65536 true")
	}
	want = append(want[:len(want)-1], fmt.Sprint(d.Size()-(2*6000-1)*64<<10, true))
	c := serve(t, Export{Device: d}).dial(t, "")
	var got []string
	emit := func(n int64, hole bool) bool {
		if k := len(got); k > 0 && strings.HasSuffix(got[k-1], fmt.Sprint(hole)) {
			t.Fatalf("extent %d is not merged with the one before", k)
		}
		got = append(got, fmt.Sprint(n, hole))
		return len(got) < len(want)
	}
	if err := c.BlockStatus(0, c.Size(), emit); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d extents, want %d (%v)", len(got), len(want), err)
	}
	got = nil
	if err := c.BlockStatus(100, 64<<10, emit); err != nil || !slices.Equal(got, []string{"65436 false", "100 true"}) {
		t.Errorf("%q (%v)", got, err)
	}
	plain := serve(t, Export{Device: d}).dialAsking(t, "", asking{info: true})
	got = nil
	if err := plain.BlockStatus(100, 64<<10, emit); err != nil || !slices.Equal(got, []string{"65536 false"}) {
		t.Errorf("without the context: %q (%v)", got, err)
	}
}

// inPieces is a disk full of data that tells of a MiB at a time, as one does that has to look for each.
type inPieces struct {
	front.Device
	told atomic.Int64
}

func (d *inPieces) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	for end := off + n; off < end; off += 1 << 20 {
		d.told.Add(1)
		if !emit(min(1<<20, end-off), false) {
			break
		}
	}
	return nil
}

// A client that asks for all of a disk where it wants to know of its beginning does not have a device look for all of it.
func TestStatusIsShort(t *testing.T) { both(t, statusIsShort) }

func statusIsShort(t *testing.T) {
	d := &inPieces{Device: memdisk.New(1 << 30)}
	c := serve(t, Export{Device: d}).dial(t, "")
	var told []int64
	err := c.BlockStatus(0, c.Size(), func(n int64, hole bool) bool { told = append(told, n); return false })
	if err != nil || !slices.Equal(told, []int64{statusBytes}) || d.told.Load() != statusBytes>>20 {
		t.Errorf("told of %d bytes, after %d pieces (%v)", told, d.told.Load(), err)
	}
	var all int64
	err = c.BlockStatus(0, c.Size(), func(n int64, hole bool) bool { all += n; return all < c.Size() })
	if err != nil || all != c.Size() || d.told.Load() != statusBytes>>20+1<<10 {
		t.Errorf("%d bytes in all, after %d pieces (%v)", all, d.told.Load(), err)
	}
}

func TestDialErrors(t *testing.T) {
	s := serve(t)
	f := func(uri, want string) {
		t.Helper()
		if _, err := Dial(t.Context(), uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
	}
	f("x", "NBD URI")
	f(s.uri("none"), `no export named "none"`)
	f("nbd+unix:///x?socket=/nowhere/s", "no such file")
	if _, err := dial(t.Context(), s.uri("none"), asking{}); !errors.Is(err, errRefused) {
		t.Errorf("EXPORT_NAME of an unknown export: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, s.uri("none")); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled dial: %v", err)
	}
}
