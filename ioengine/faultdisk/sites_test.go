package faultdisk

import (
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// The sites that were hit are not missed, and the others are, by name.
func TestSites(t *testing.T) {
	dir := t.TempDir()
	src := "package p\n\nfunc f(w writer) {\n\tw.file.Sync()\n\tw.file.Truncate(0)\n\tw.mu.Lock()\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Sites{hit: map[string]int{filepath.Base(dir) + "/p.go:4": 1}}
	missed, all, err := s.Missed(dir, regexp.MustCompile(`\.file$`))
	if err != nil || all != 2 || len(missed) != 1 || missed[0] != "p.go:5 f w.file.Truncate" {
		t.Errorf("missed %q of %d (%v)", missed, all, err)
	}
	if err := s.unknown(dir, regexp.MustCompile(`\.file$`)); err == nil {
		t.Error("what is missed and not listed is no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "testdata"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "testdata", "sites.txt"), []byte("f w.file.Truncate as a test says\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.unknown(dir, regexp.MustCompile(`\.file$`)); err != nil {
		t.Errorf("what is listed: %v", err)
	}
	if _, _, err := s.Missed(dir, regexp.MustCompile(`nobody`)); err == nil {
		t.Error("a package without a call of the disk interface has no sites to miss")
	}
}

// When failures alone count, a site is hit by an operation that fails.
func TestSitesOfFailures(t *testing.T) {
	t.Setenv(failedEnv, "1")
	s := RecordSites()
	defer recording.Store(nil)
	d := New(1)
	d.Inject(Fault{Ops: OpMkdir, At: 2, Err: syscall.EIO})
	for i, want := range []int{0, 1, 1} {
		_ = d.Mkdir("a")
		s.mu.Lock()
		if n := len(s.hit); n > want {
			t.Errorf("after %d operations %d sites are hit, want %d", i+1, n, want)
		}
		s.mu.Unlock()
	}
}
