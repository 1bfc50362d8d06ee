package faultdisk

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The sites that were hit are not missed, and the others are, by name.
func TestSites(t *testing.T) {
	dir := t.TempDir()
	src := "package p\n\nfunc f(w writer) {\n\tw.file.Sync()\n\tw.file.Truncate(0)\n\tw.mu.Lock()\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Sites{hit: map[string]int{"p.go:4": 1}}
	missed, all, err := s.Missed(dir, regexp.MustCompile(`\.file$`))
	if err != nil || all != 2 || len(missed) != 1 || missed[0] != "p.go:5 f w.file.Truncate" {
		t.Errorf("missed %q of %d (%v)", missed, all, err)
	}
	if _, _, err := s.Missed(dir, regexp.MustCompile(`nobody`)); err == nil {
		t.Error("a package without a call of the disk interface has no sites to miss")
	}
}
