package sidecar

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newAudit(t *testing.T, dir string, size int64, keep int) *audit {
	t.Helper()
	a, err := openAudit(dir, size, keep, func() time.Time { return time.Unix(1000, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close() })
	return a
}

func put(t *testing.T, a *audit, what string) uint64 {
	t.Helper()
	n, err := a.write(Record{Event: auditAsked, Who: "ann", What: what})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAuditGoesOn over restarts and new files, with numbers and hashes, and keeps only so many.
func TestAuditGoesOn(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		a := newAudit(t, dir, 400, 3)
		for j := range 2 {
			if n := put(t, a, "x"); n != uint64(2*i+j+1) {
				t.Fatalf("record %d is number %d", 2*i+j+1, n)
			}
		}
		a.close()
	}
	n, first, err := CheckAudit(dir)
	if err != nil || n+first != 25 || n < 6 || n > 16 {
		t.Errorf("%d records from %d, %v", n, first, err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 4 {
		t.Errorf("%q", files)
	}
}

// TestAuditSeesChanges: a record that was changed, taken out or put in shows.
func TestAuditSeesChanges(t *testing.T) {
	dir := t.TempDir()
	a := newAudit(t, dir, 1<<20, 3)
	for range 4 {
		put(t, a, "Create")
	}
	a.close()
	whole, err := os.ReadFile(a.path())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for what, text := range map[string][]byte{
		"changed":   bytes.Replace(whole, []byte("Create"), []byte("Delete"), 1),
		"taken out": bytes.Join([][]byte{lines[0], lines[2], lines[3]}, nil),
		"put in":    bytes.Join([][]byte{lines[0], lines[1], lines[1], lines[2], lines[3]}, nil),
		"no record": append(bytes.Clone(whole), "{}\n"...),
		"no JSON":   append(bytes.Clone(whole), "x\n"...),
	} {
		if err := os.WriteFile(a.path(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := CheckAudit(dir); err == nil {
			t.Errorf("%s: nobody sees it", what)
		}
		if _, err := openAudit(dir, 1<<20, 3, time.Now); err == nil || !strings.Contains(err.Error(), "move the audit files away") {
			t.Errorf("%s: it goes on: %v", what, err)
		}
	}
	// A line that was not written whole was never passed on.
	if err := os.WriteFile(a.path(), whole[:len(whole)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	b := newAudit(t, dir, 1<<20, 3)
	if n := put(t, b, "y"); n != 4 {
		t.Errorf("after a torn record comes %d", n)
	}
	if n, _, err := CheckAudit(dir); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// faulty fails at one of its operations.
type faulty struct {
	auditFile
	write, sync error
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.write != nil {
		n, _ := f.auditFile.Write(p[:len(p)/2])
		return n, f.write
	}
	return f.auditFile.Write(p)
}

func (f *faulty) Sync() error { return errors.Join(f.sync, f.auditFile.Sync()) }

// TestAuditErrors: what failed was not written down, and what comes after it follows what was.
func TestAuditErrors(t *testing.T) {
	for what, bad := range map[string]*faulty{"write": {write: errors.New("no space")}, "sync": {sync: errors.New("bad disk")}} {
		dir := t.TempDir()
		a := newAudit(t, dir, 1<<20, 3)
		put(t, a, "first")
		bad.auditFile = a.mu.file
		a.mu.file = bad
		if _, err := a.write(Record{Event: auditAsked, What: "lost"}); err == nil {
			t.Errorf("%s: the error is not told", what)
		}
		a.open = func(string) (auditFile, error) { return nil, errors.New("cannot open") }
		if _, err := a.write(Record{Event: auditAsked, What: "lost too"}); err == nil {
			t.Errorf("%s: without a file it is written", what)
		}
		a.open = openForAppending
		put(t, a, "second")
		a.close()
		if _, _, err := CheckAudit(dir); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	dir := t.TempDir()
	a := newAudit(t, dir, 1, 3)
	put(t, a, "first")
	a.open = func(string) (auditFile, error) { return nil, errors.New("cannot open") }
	if _, err := a.write(Record{What: "in a new file"}); err == nil {
		t.Error("without a new file it is written")
	}
	a.open = openForAppending
	if n := put(t, a, "second"); n != 2 {
		t.Errorf("then comes %d", n)
	}
	if _, _, err := CheckAudit(dir); err != nil {
		t.Error(err)
	}
	if _, err := openAudit(filepath.Join(a.path(), "under a file"), 1, 1, time.Now); err == nil {
		t.Error("a folder under a file")
	}
}

func FuzzCheckRecords(f *testing.F) {
	dir := f.TempDir()
	a, err := openAudit(dir, 1<<20, 3, time.Now)
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		if _, err := a.write(Record{Event: auditAsked, Who: "ann"}); err != nil {
			f.Fatal(err)
		}
	}
	a.close()
	file, err := os.Open(a.path())
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n := uint64(0)
		end, err := checkRecords(text, func(Record) { n++ })
		if end.bytes > int64(len(text)) || err == nil && n > 0 && end.next-end.first != n {
			t.Errorf("%+v of %d records in %d bytes, %v", end, n, len(text), err)
		}
	})
}
