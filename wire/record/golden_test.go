package record

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of this version that are not there yet")

// describe tells all that a record holds, one fact a line.
func describe(r Record) string {
	var w strings.Builder
	h := r.Header
	fmt.Fprintf(&w, "%v %v time=%d tickets=%d..%d blocks=%d extents=%d body=%d raw=%d stored=%d size=%d checksum=%08x\n",
		h.Kind, h.Identity, h.Time, h.First, h.Last, h.Blocks, h.Extents, h.Body, h.Raw, h.Stored, h.Size, h.Checksum)
	for i := range r.Blocks {
		b := r.Block(i)
		raw, err := r.OpenBlock(nil, i)
		fmt.Fprintf(&w, "block %d: %+v raw crc=%08x %v\n", i, b, sumOf(raw), err)
	}
	for i := range r.Extents {
		fmt.Fprintf(&w, "extent %d: %+v\n", i, r.Extent(i))
	}
	for _, parse := range []func() (any, error){
		func() (any, error) { return ParseCut(r) },
		func() (any, error) { return ParseConfirm(r) },
		func() (any, error) { return ParseResize(r) },
		func() (any, error) { return ParseResync(r) },
	} {
		if v, err := parse(); err == nil {
			fmt.Fprintf(&w, "%T %+v\n", v, v)
		} else if !errors.Is(err, ErrKind) {
			fmt.Fprintln(&w, err)
		}
	}
	return w.String()
}

// TestGolden: the files in testdata open for ever, to what stands beside them.
func TestGolden(t *testing.T) {
	now := controls()
	now["mixed"], now["folded"] = mixed(t), foldedMixed(t)
	for name, p := range now {
		path := filepath.Join("testdata", "v1-"+name+".record")
		if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
			if err := errors.Join(os.WriteFile(path, p, 0o644), os.WriteFile(path+".txt", []byte(describe(mustParse(t, p))), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// What the LZ4 encoder makes of data may change with the library; nothing else may.
		if name != "mixed" && name != "folded" && !bytes.Equal(golden, p) {
			t.Errorf("%s is written in another way now", name)
		}
	}
	files, err := filepath.Glob("testdata/*.record")
	if err != nil || len(files) < len(now) {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, path := range files {
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(mustParse(t, p)); got != string(want) {
			t.Errorf("%s:\n%swant\n%s", path, got, want)
		}
	}
}
