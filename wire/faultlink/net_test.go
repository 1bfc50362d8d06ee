package faultlink

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func connected(t *testing.T, n *Net) (near, far net.Conn) {
	t.Helper()
	port, err := n.Listen("tcp", "a")
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if near, err = n.Dial(context.Background(), "tcp", "a"); err != nil {
		t.Fatal(err)
	}
	if far, err = port.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func TestNetFaults(t *testing.T) {
	text := strings.Repeat("0123456789", 10)
	f := func(way Way, want string, wantErr error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			near, far := connected(t, &Net{Script: func(string, int) Faults { return Faults{Up: way} }})
			defer near.Close()
			defer far.Close()
			go near.Write([]byte(text))
			far.SetReadDeadline(time.Now().Add(time.Minute))
			got := make([]byte, len(text))
			n, err := io.ReadFull(far, got)
			if string(got[:n]) != want || !errors.Is(err, wantErr) {
				t.Errorf("%+v: read %q, %v; want %q, %v", way, got[:n], err, want, wantErr)
			}
		})
	}
	f(Way{}, text, nil)
	f(Way{Slice: 3}, text, nil)
	f(Way{Delay: time.Second}, text, nil)
	f(Way{CutAt: 13}, text[:13], syscall.ECONNRESET)
	f(Way{CutAt: 13, Slice: 2}, text[:13], syscall.ECONNRESET)
	f(Way{StallAt: 13}, text[:13], os.ErrDeadlineExceeded)
	f(Way{RepeatAt: 1, Slice: 7}, (text[:7] + text)[:100], nil)
	f(Way{FlipAt: 1}, " "+text[1:], nil)
	f(Way{FlipAt: 11, Slice: 4}, text[:10]+" "+text[11:], nil)
	f(Way{Delay: 2 * time.Minute}, "", os.ErrDeadlineExceeded)
}

func TestNetEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Net{Window: 10}
		near, far := connected(t, n)
		near.Write([]byte("last"))
		near.Close()
		if p, err := io.ReadAll(far); string(p) != "last" || err != nil {
			t.Errorf("after a close: %q, %v", p, err)
		}
		if _, err := far.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed end: %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed end: %v", err)
		}
		far.Close()
		if len(n.pairs) != 0 {
			t.Error("the net keeps closed connections")
		}

		near, far = connected(t, n)
		near.SetWriteDeadline(time.Now().Add(time.Second))
		if wrote, err := near.Write(make([]byte, 20)); wrote != 10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d past a window of 10: %v", wrote, err)
		}
		n.Down()
		if _, err := near.Write(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write after a cut: %v", err)
		}
		if p, err := io.ReadAll(far); len(p) != 10 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %d bytes after a cut: %v", len(p), err)
		}
		if _, err := n.Dial(context.Background(), "tcp", "a"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialled while down: %v", err)
		}
		n.Up()
		near, far = connected(t, n)
		n.Freeze()
		near.Write([]byte("x"))
		near.Close()
		far.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read from a frozen net: %v", err)
		}
		far.Close()
	})
}

func TestRandomFaultsAreOfTheirSeed(t *testing.T) {
	a, b := rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(1, 2))
	kinds := make(map[bool]int)
	for range 100 {
		x, y := Random(a, 1000), Random(b, 1000)
		if x != y {
			t.Fatalf("one seed, two faults: %+v, %+v", x, y)
		}
		kinds[x.Up.CutAt > 0]++
	}
	if kinds[true] < 20 || kinds[false] < 20 {
		t.Errorf("cuts and none: %v", kinds)
	}
}
