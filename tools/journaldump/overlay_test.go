package main

import (
	"bytes"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// TestOverlayAgainstModel does random things to a file and to a model of it; what lies
// beneath must stay as it was.
func TestOverlayAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "overlay")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		name := filepath.Join(dir, "f")
		first := bytes.Repeat([]byte("beneath"), rapid.IntRange(0, 3000).Draw(t, "length"))
		if err := os.WriteFile(name, first, 0o600); err != nil {
			t.Fatal(err)
		}
		o := newOverlay(ioengine.OS())
		defer o.close()
		f, err := o.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		model := slices.Clone(first)
		grow := func(size int) {
			model = append(model, make([]byte, max(0, size-len(model)))...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off := rapid.IntRange(0, 20000).Draw(t, "off")
				p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, rapid.IntRange(1, 9000).Draw(t, "n"))
				if _, err := f.WriteAt(p, int64(off)); err != nil {
					t.Fatal(err)
				}
				grow(off + len(p))
				copy(model[off:], p)
			},
			"zero": func(t *rapid.T) {
				off, n := rapid.IntRange(0, 20000).Draw(t, "off"), rapid.IntRange(0, 9000).Draw(t, "n")
				if err := f.Zero(int64(off), int64(n)); err != nil {
					t.Fatal(err)
				}
				if off < len(model) {
					clear(model[off:min(len(model), off+n)])
				}
			},
			"truncate": func(t *rapid.T) {
				size := rapid.IntRange(0, 25000).Draw(t, "size")
				if err := f.Truncate(int64(size)); err != nil {
					t.Fatal(err)
				}
				grow(size)
				model = model[:size]
			},
			"": func(t *rapid.T) {
				got := make([]byte, len(model)+10)
				n, err := f.ReadAt(got, 0)
				if err != io.EOF || !bytes.Equal(got[:n], model) {
					t.Fatalf("read %d bytes of %d, %v, equal %v", n, len(model), err, bytes.Equal(got[:n], model))
				}
			},
		})
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, first) {
			t.Fatalf("what lies beneath was changed: %v", err)
		}
	})
}

func TestOverlayNames(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := newOverlay(ioengine.OS())
	defer o.close()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(o.Rename(dir+"/a", dir+"/c"))
	ok(o.Remove(dir + "/b"))
	ok(o.Mkdir(dir + "/sub"))
	f, err := o.Open(dir+"/sub/new", ioengine.Create|ioengine.Exclusive)
	ok(err)
	_, err = f.WriteAt([]byte("x"), 0)
	ok(err)
	for in, want := range map[string][]string{dir: {"c", "sub"}, dir + "/sub": {"new"}} {
		if got, err := o.List(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s holds %v, %v; want %v", in, got, err, want)
		}
	}
	if _, err := o.Open(dir+"/b", 0); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("a removed file opens: %v", err)
	}
	if _, err := o.Open(dir+"/c", ioengine.Create|ioengine.Exclusive); !errors.Is(err, iofs.ErrExist) {
		t.Errorf("a file that is there was made: %v", err)
	}
	ok(o.hide(dir))
	if got, err := o.List(dir); err != nil || len(got) != 0 {
		t.Errorf("hidden, it holds %v, %v", got, err)
	}
	if got, err := os.ReadDir(dir); err != nil || len(got) != 2 {
		t.Errorf("beneath there are %v, %v", got, err)
	}
}
