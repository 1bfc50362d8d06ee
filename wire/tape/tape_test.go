package tape

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden tape of this version if it is not there yet")

// sample writes a tape of one of each entry. The clock of a bubble is always the same.
func sample(t *testing.T) (p []byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		tape := New(&b, Options{Payload: true, Limit: 1 << 20})
		one := tape.Open(Opened{Dialled, "west/vra/t1", "192.0.2.1:50000", "192.0.2.2:4007"})
		two := tape.Open(Opened{Taken, "west/vra/t2", "[2001:db8::1]:4008", "[2001:db8::2]:50001"})
		one.Bytes(Sent, 0, true, []byte("hello"))
		two.Bytes(Received, 16, false, []byte("later"))
		one.Close()
		one.Close() // once is enough
		tape.mu.Lock()
		tape.mu.lost = 77
		tape.mu.Unlock()
		two.Bytes(Sent, 1<<40, true, make([]byte, 300))
		tape.Close()
		two.Close() // after the end of the tape
		p = b.Bytes()
	})
	return p
}

// told lists what a reader finds, an entry or an error a line.
func told(p []byte) string {
	r, err := NewReader(bytes.NewReader(p))
	if err != nil {
		return err.Error() + "\n"
	}
	var w strings.Builder
	fmt.Fprintf(&w, "began %d payload %v\n", r.Header().Began.UnixNano(), r.Header().Payload)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return w.String()
		}
		if err != nil {
			fmt.Fprintln(&w, err)
			continue
		}
		fmt.Fprintf(&w, "type %d way %v begins %v connection %d offset %d time %d data %x opened %v %q %q %q\n", e.Type, e.Way, e.Begins,
			e.Connection, e.Offset, e.Time.UnixNano(), e.Data, e.Opened.Side, e.Opened.Peer, e.Opened.Here, e.Opened.There)
	}
}

// TestGolden: the tape in testdata opens for ever, and is what is written today.
func TestGolden(t *testing.T) {
	now, path := sample(t), filepath.Join("testdata", "v1.tape")
	if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
		if err := errors.Join(os.WriteFile(path, now, 0o644), os.WriteFile(path+".txt", []byte(told(now)), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := told(golden); got != string(want) {
		t.Errorf("reads as\n%s", got)
	}
	if !bytes.Equal(now, golden) {
		t.Errorf("today's is\n%s", told(now))
	}
}

// A bit that changed anywhere is told, and costs no entry but the one it stands in.
func TestEveryBitCounts(t *testing.T) {
	p := sample(t)
	whole := strings.Split(strings.TrimSpace(told(p)), "\n")
	for at := range p {
		q := bytes.Clone(p)
		q[at] ^= 1 << (at % 8)
		got := told(q)
		if at < headerBytes {
			if strings.Contains(got, "type") {
				t.Fatalf("byte %d of the header: %s", at, got)
			}
			continue
		}
		lines := strings.Split(strings.TrimSpace(got), "\n")
		missing := 0
		for _, l := range whole {
			if !strings.Contains(got, l) {
				missing++
			}
		}
		if missing != 1 || len(lines) != len(whole) || strings.Count(got, "damaged") != 1 || !strings.Contains(got, "passed over") {
			t.Fatalf("byte %d: %d entries are missing\n%s", at, missing, got)
		}
	}
}

// A tape that ends anywhere gives what is whole, and says that the rest is not.
func TestCutAnywhere(t *testing.T) {
	p := sample(t)
	whole := told(p)
	for n := range p {
		got := told(p[:n])
		body, cut, _ := strings.Cut(got, "at ")
		if n < headerBytes {
			if !strings.HasPrefix(got, ErrFormat.Error()) {
				t.Fatalf("%d bytes: %s", n, got)
			}
		} else if !strings.HasPrefix(whole, body) || cut != "" && !strings.Contains(cut, ErrCut.Error()) {
			t.Fatalf("%d bytes: %s", n, got)
		}
	}
}

// stuck is a file that takes nothing until it is told to.
type stuck struct {
	bytes.Buffer
	free chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.free
	return s.Buffer.Write(p)
}

// A file that takes nothing holds nobody up: what does not fit is left out, and the tape says how much.
func TestSlowFileLosesAndSaysSo(t *testing.T) {
	f := &stuck{free: make(chan struct{})}
	tape := New(f, Options{Limit: 1 << 30})
	c := tape.Open(Opened{Dialled, "west/vra/t1", "a", "b"})
	piece := make([]byte, 100_000)
	const pieces = 300
	for i := range pieces {
		c.Bytes(Sent, uint64(i)*uint64(len(piece)), true, piece)
	}
	close(f.free)
	tape.Close()
	got := told(f.Bytes())
	var kept, lost uint64
	r, err := NewReader(&f.Buffer)
	for err == nil {
		var e Entry
		if e, err = r.Next(); err == nil && e.Type == Lost {
			lost += e.Offset
		}
		kept += uint64(len(e.Data))
	}
	if !errors.Is(err, io.EOF) || lost == 0 || kept+lost != pieces*uint64(len(piece)) || kept > 2*waiting {
		t.Errorf("%d bytes on the tape, %d said to be lost: %v\n%.300s", kept, lost, err, got)
	}
}

// A tape ends at its limit and says so; one whose file is full ends as well.
func TestTapeEnds(t *testing.T) {
	var b bytes.Buffer
	tape := New(&b, Options{Limit: 2000})
	c := tape.Open(Opened{Dialled, "west/vra/t1", "a", "b"})
	for i := range 10 {
		c.Bytes(Sent, uint64(i)*500, true, make([]byte, 500))
	}
	tape.Close()
	if got := told(b.Bytes()); b.Len() > 2000 || strings.Count(got, "type 2") != 3 || !strings.Contains(got, "type 5") {
		t.Errorf("%d bytes:\n%.300s", b.Len(), got)
	}
	tape = New(broken{}, Options{Limit: 1 << 20})
	tape.Open(Opened{Dialled, "west/vra/t1", "a", "b"}).Bytes(Sent, 0, true, []byte("lost"))
	tape.Close()
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// What nobody should write is no tape.
func TestReaderRefuses(t *testing.T) {
	f := func(change func(p []byte), want error) {
		t.Helper()
		p := Header{}.appendTo(nil)
		change(p)
		le.PutUint32(p[atHeaderCRC:], sum(p[:atHeaderCRC]))
		if _, err := NewReader(bytes.NewReader(p)); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	f(func(p []byte) { p[0]++ }, ErrFormat)
	f(func(p []byte) { p[atVersion]++ }, ErrVersion)
	f(func(p []byte) { p[atFlags] |= 2 }, ErrDamaged)
	f(func(p []byte) { p[20] = 1 }, ErrDamaged)
}

// Whatever a file says, reading it ends, and takes no more memory than it may.
func FuzzReader(f *testing.F) {
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.tape"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(golden[:len(golden)-1])
	f.Add(golden[:headerBytes])
	f.Fuzz(func(t *testing.T, p []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, err := NewReader(bytes.NewReader(p))
		if err != nil {
			return
		}
		again := r.Header().appendTo(nil)
		for n := 0; ; n++ {
			if n > len(p) {
				t.Fatal("it does not end")
			}
			at := r.At()
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				if r.At() != int64(len(p)) {
					t.Fatalf("ends at %d of %d", r.At(), len(p))
				}
				break
			}
			if err == nil {
				if again = e.appendTo(again[:0]); !bytes.Equal(again, p[at:r.At()]) {
					t.Fatalf("read and write disagree on %x", p[at:r.At()])
				}
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrCut) || r.At() <= at {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 4*MaxBytes+16*uint64(len(p))+1<<20 {
			t.Fatalf("%d bytes allocated for %d", got, len(p))
		}
	})
}
