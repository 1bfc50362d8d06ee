package ioengine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

func newLoopFile(t *testing.T, entries int) (*Loop, File) {
	t.Helper()
	return newLoopFlags(t, entries, Create|Direct)
}

func newLoopFlags(t *testing.T, entries int, flags Flags) (*Loop, File) {
	t.Helper()
	f, err := OS().Open(filepath.Join(t.TempDir(), "f"), flags)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLoop(f, entries)
	if errors.Is(err, ErrNoLoop) {
		f.Close()
		t.Skip("this system offers no io_uring: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return l, f
}

// drain steps until nothing is in flight.
func drain(t *testing.T, l *Loop) {
	t.Helper()
	for l.Flying() > 0 {
		if err := l.Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Step(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoopWritesAndReads(t *testing.T) {
	const entries, size = 8, 64 << 10
	l, f := newLoopFile(t, entries)
	defer l.Close()
	p := buf.Aligned(size)
	for i := range p {
		p[i] = byte(i / 4096 * 7)
	}
	ends := 0
	wrote := func(n int, err error) {
		if ends++; n != size/entries || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	for i := range entries {
		part := p[i*size/entries : (i+1)*size/entries]
		if !l.Write(f, [][]byte{part[:4096], part[4096:]}, int64(i*size/entries), wrote) {
			t.Fatal("no room")
		}
	}
	if l.Write(f, [][]byte{p[:4096]}, 0, wrote) {
		t.Error("more than there is room for")
	}
	drain(t, l)
	got := buf.Aligned(size)
	ends = 0
	for i := range entries {
		l.Read(f, [][]byte{got[i*size/entries : (i+1)*size/entries]}, int64(i*size/entries), wrote)
	}
	drain(t, l)
	if ends != entries || !bytes.Equal(got, p) {
		t.Errorf("%d ends; read back: %t", ends, bytes.Equal(got, p))
	}
}

// TestLoopGives: the kernel has what was begun before anybody waits, by fours or by 64 KiB; fewer go with the call
// that waits for them.
func TestLoopGives(t *testing.T) {
	const entries = 8
	l, f := newLoopFile(t, entries)
	defer l.Close()
	p := buf.Aligned(giveBytes)
	begin := func(n int, wantKept uint32) {
		t.Helper()
		before, _ := l.Pulse()
		if !l.Write(f, [][]byte{p[:n]}, 0, func(got int, err error) {
			if got != n || err != nil {
				t.Errorf("%d bytes, %v", got, err)
			}
		}) {
			t.Fatal("no room")
		}
		if kept := l.tail - l.given; kept != wantKept {
			t.Errorf("%d are kept, want %d", kept, wantKept)
		}
		// Whoever watches the loop sees that it was in the kernel, where the disk may hold it up, and with how much.
		if pulse, flying := l.Pulse(); (pulse > before) != (wantKept == 0) || pulse%2 != 0 || wantKept == 0 && flying != l.Flying() {
			t.Errorf("the pulse went from %d to %d, with %d of %d in flight; %d are kept", before, pulse, flying, l.Flying(), wantKept)
		}
	}
	begin(4096, 1)
	begin(4096, 2)
	begin(4096, 3)
	begin(4096, 0)
	begin(giveBytes, 0)
	begin(giveBytes/2, 1)
	begin(giveBytes/2, 0)
	begin(4096, 1)
	if drain(t, l); l.tail != l.given {
		t.Errorf("%d are kept at the end", l.tail-l.given)
	}
}

// TestLoopRefused: what the kernel does not take when a loop gives it, all of it or some, it is given again, and nothing of it
// is lost; who steps or waits meanwhile is told.
func TestLoopRefused(t *testing.T) {
	const entries = 8
	l, f := newLoopFile(t, entries)
	p := buf.Aligned(giveBytes)
	ends, begun := 0, 0
	begin := func(n int) {
		t.Helper()
		if begun++; !l.Write(f, [][]byte{p[:n]}, 0, func(got int, err error) {
			if ends++; got != n || err != nil {
				t.Errorf("%d bytes, %v", got, err)
			}
		}) {
			t.Fatal("no room")
		}
	}
	taken := func(name string, wantKept uint32) {
		t.Helper()
		if kept := l.tail - atomic.LoadUint32(l.sq.head); kept != wantKept || l.tail-l.given != wantKept {
			t.Errorf("%s: %d are kept, and %d are taken for it; want %d", name, kept, l.tail-l.given, wantKept)
			l.given = atomic.LoadUint32(l.sq.head) // so that all end
		}
	}
	ring := l.fd
	l.fd = -1
	for range 6 {
		begin(4096)
	}
	if _, err := l.Step(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Step: %v", err)
	}
	if err := l.Wait(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Wait: %v", err)
	}
	l.fd = ring
	taken("refused", 6)
	begin(4096)
	taken("given again", 0)
	drain(t, l)

	// Behind an operation that is none the kernel takes nothing more.
	none := func() {
		name := len(l.roomy)
		l.roomy[name] = func() {}
		l.put(sqe{code: 255, user: roomUser | uint64(name)})
	}
	none()
	begin(giveBytes)
	taken("the first of two", 1)
	begin(4096)
	taken("as many bytes are begun as before", 0)
	none()
	begin(4096)
	drain(t, l)
	if taken("by Step", 0); ends != begun {
		t.Errorf("%d of %d ended", ends, begun)
	}
	l.Close()
}

// TestLoopHearsBesideEnds: whatever a turn begins, and though all of it ends while it is given, so that there is always something
// that has ended, a loop hears of its descriptors.
func TestLoopHearsBesideEnds(t *testing.T) {
	const entries = 2 * giveOps
	for n := range entries + 1 {
		for _, waits := range []bool{false, true} {
			if n == 0 && !waits {
				continue // nothing is begun, and nobody waits: it needs not hear
			}
			t.Run(fmt.Sprintf("begun=%d/waits=%t", n, waits), func(t *testing.T) {
				l, f := newLoopFlags(t, entries, Create) // what was written stands in the page cache
				defer l.Close()
				p := buf.Aligned(4096)
				if _, err := f.WriteAt(p, 0); err != nil {
					t.Fatal(err)
				}
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				heard := 0
				if err := l.Hear(fd, func() { heard++ }); err != nil {
					t.Fatal(err)
				}
				const turns = 3 // of which it hears
				for range 100 {
					if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
						t.Fatal(err)
					}
					before := heard
					for i := 0; heard == before; i++ {
						if i == turns {
							t.Fatalf("nothing was heard in %d turns", turns)
						}
						for range n {
							if !l.Read(f, [][]byte{p}, 0, func(int, error) {}) {
								t.Fatal("no room")
							}
						}
						if waits {
							if err := l.Wait(); err != nil {
								t.Fatal(err)
							}
						}
						if _, err := l.Step(); err != nil {
							t.Fatal(err)
						}
						drain(t, l)
					}
				}
			})
		}
	}
}

// TestLoopForgetsItsParts: what was written from memory that is gone is of no account to the collector of
// garbage when other parts take its place.
func TestLoopForgetsItsParts(t *testing.T) {
	l, f := newLoopFile(t, 1)
	defer l.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	const parts, rounds = 16, 300
	for range rounds {
		var list [][]byte
		for range parts {
			list = append(list, buf.Aligned(32<<10))
		}
		if !l.Write(f, list, 0, func(int, error) {}) {
			t.Fatal("no room")
		}
		drain(t, l)
	}
	close(stop)
	<-stopped
}

func TestLoopErrors(t *testing.T) {
	l, f := newLoopFile(t, 4)
	defer l.Close()
	p := buf.Aligned(8192)
	if _, err := f.WriteAt(p[:4096], 0); err != nil {
		t.Fatal(err)
	}
	ask := func(name string, want error, wantN int, begin func(done func(int, error)) bool) {
		t.Helper()
		done := false
		if !begin(func(n int, err error) {
			if done = true; !errors.Is(err, want) || n != wantN {
				t.Errorf("%s: %d bytes, %v; want %d, %v", name, n, err, wantN, want)
			}
		}) {
			t.Errorf("%s: not begun", name)
			return
		}
		drain(t, l)
		if !done {
			t.Errorf("%s: not ended", name)
		}
	}
	ask("beyond the end", io.ErrUnexpectedEOF, 4096, func(done func(int, error)) bool { return l.Read(f, [][]byte{p}, 0, done) })
	ask("negative", unix.EINVAL, 0, func(done func(int, error)) bool { return l.Write(f, [][]byte{p}, -4096, done) })
	reader, err := OS().Open(f.(*osFile).name, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	ask("read-only", unix.EBADF, 0, func(done func(int, error)) bool { return l.Write(reader, [][]byte{p}, 0, done) })
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	never := func(int, error) { t.Error("ended") }
	if l.Read(reader, [][]byte{p}, 0, never) {
		t.Error("a closed file is read")
	}
	if l.Write(f, make([][]byte, LoopParts+1), 0, never) {
		t.Error("too many parts are begun")
	}
	if _, err := NewLoop(f, maxLoopEntries+1); !errors.Is(err, ErrNoLoop) {
		t.Error(err)
	}
	forced, err := Threads().Open(f.(*osFile).name, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer forced.Close()
	if _, err := NewLoop(forced, 1); !errors.Is(err, ErrNoLoop) {
		t.Error(err)
	}
}

// TestHold: a file is one opening's, until that is closed.
func TestHold(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	open := func() File {
		t.Helper()
		f, err := OS().Open(name, Create)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := open(), open()
	defer b.Close()
	if err := a.(Holder).Hold(); err != nil {
		t.Error(err)
	}
	if err := b.(Holder).Hold(); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	if _, err := OS().Lock(name); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := b.(Holder).Hold(); err != nil {
		t.Error(err)
	}
}

// TestLoopHears of eventfds, its own among them, again and again.
func TestLoopHears(t *testing.T) {
	l, _ := newLoopFile(t, 1)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := l.Watch(fd); err != nil {
		t.Fatal(err)
	}
	hears := func() {
		t.Helper()
		for some := false; !some; {
			if err := l.Wait(); err != nil {
				t.Fatal(err)
			}
			if some, err = l.Step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 100 {
		go l.Wake()
		hears()
		go unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		hears()
	}
	l.Close()
	l.Wake() // nobody hears it
}

// TestLoopOnSockets: a loop hears of what comes to a socket, again and again, and of its end; and of room in it,
// once each time that is asked.
func TestLoopOnSockets(t *testing.T) {
	l, _ := newLoopFile(t, 1)
	defer l.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair[0], pair[1]
	defer unix.Close(ours)
	heard, roomy := 0, 0
	until := func(n *int) {
		t.Helper()
		for before := *n; *n == before; {
			if err := l.Wait(); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Hear(ours, func() { heard++ }); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 64<<10)
	for range 100 {
		go unix.Write(theirs, make([]byte, 28))
		until(&heard)
		if n, err := unix.Read(ours, p); n != 28 || err != nil {
			t.Fatalf("heard of %d bytes, %v", n, err)
		}
	}
	for range 3 {
		for err = nil; err == nil; {
			_, err = unix.Write(ours, p)
		}
		if err != unix.EAGAIN {
			t.Fatal(err)
		}
		told := roomy
		if err := l.Room(ours, func() { roomy++ }); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Step(); err != nil || roomy != told {
			t.Fatalf("a full socket has room: %v", err)
		}
		for err = nil; err == nil; {
			_, err = unix.Read(theirs, p)
		}
		if until(&roomy); roomy != told+1 {
			t.Errorf("told %d times of room", roomy-told)
		}
	}
	unix.Close(theirs)
	until(&heard)
	if n, err := unix.Read(ours, p); n != 0 || err != nil {
		t.Errorf("heard of an end that is %d bytes, %v", n, err)
	}
}
