package datapath

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

var goldenLedger = ledger{Acked: 0x1122334455667788, Whole: 0x0102030405060708, Unfinished: true}

func TestLedgerGolden(t *testing.T) {
	name := filepath.Join("testdata", "ledger-1")
	if *update {
		if err := os.WriteFile(name, goldenLedger.encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := decodeLedger(p); !ok || l != goldenLedger || !bytes.Equal(p, goldenLedger.encode()) {
		t.Errorf("the golden ledger reads as %+v, %t", l, ok)
	}
}

func FuzzLedger(f *testing.F) {
	f.Add(goldenLedger.encode())
	f.Add(ledger{}.encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		l, ok := decodeLedger(p)
		if ok && !bytes.Equal(l.encode(), p) {
			t.Fatalf("%x reads as %+v", p, l)
		}
		if len(p) == ledgerBytes { // no bit may change unseen
			q := goldenLedger.encode()
			for i := range q {
				q[i] ^= p[i]
			}
			if l, ok := decodeLedger(q); ok && l != goldenLedger && !bytes.Equal(l.encode(), q) {
				t.Fatalf("%x reads as %+v", q, l)
			}
		}
	})
}

func TestLedgerOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	f, l, err := openLedger(dir, 7)
	if err != nil || l != (ledger{}) {
		t.Fatalf("a new ledger is %+v, %v", l, err)
	}
	if err := errors.Join(f.put(goldenLedger), f.f.Close()); err != nil {
		t.Fatal(err)
	}
	f, l, err = openLedger(dir, 7)
	if err != nil || l != goldenLedger {
		t.Fatalf("it is %+v, %v", l, err)
	}
	f.f.Close()
}

func TestIncarnations(t *testing.T) {
	i := openIncarnations(t.TempDir(), 7)
	if n, err := i.get(); n.last != 0 || err != nil {
		t.Fatalf("none was drawn, and it is %+v, %v", n, err)
	}
	if err := i.put(drawn{}.with(41)); err != nil {
		t.Fatal(err)
	}
	if n, err := i.get(); n.last != 41 || !n.own(41) || n.own(40) || err != nil {
		t.Fatalf("kept 41, and it is %+v, %v", n, err)
	}
	if err := os.WriteFile(i.name, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := i.get(); err == nil {
		t.Fatal("nonsense was read: an incarnation would be drawn twice")
	}
}

func TestDataDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := OpenDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDataDir(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second user gets %v", err)
	}
	lock.Close()
	if lock, err = OpenDataDir(dir); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := os.WriteFile(filepath.Join(dir, "format"), []byte("holdfast vra 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDataDir(dir); !errors.Is(err, ErrFormat) {
		t.Errorf("a newer format gives %v", err)
	}
}
