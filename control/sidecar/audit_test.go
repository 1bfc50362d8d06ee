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

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
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
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 5 { // and the lock
		t.Errorf("%q", files)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestNewestOfTheAudit: what goes into a bundle does not begin anew with each file, nor is all read for it that there is.
func TestNewestOfTheAudit(t *testing.T) {
	dir := t.TempDir()
	a := newAudit(t, dir, 400, 100)
	defer a.close()
	f := func(records int, above bool) {
		t.Helper()
		files, err := a.files()
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := readFiles(t.Context(), files, "", logQuery{bytes: bundleAudit, scan: bundleAudit})
		if err != nil || len(got.kept) != records || got.above != above {
			t.Errorf("%d records, older ones left out: %v, %v; want %d, %v", len(got.kept), got.above, err, records, above)
		}
	}
	for range 21 {
		put(t, a, "x")
	}
	all, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(all) < 4 {
		t.Fatalf("%q, %v", all, err)
	}
	f(21, false)
	last := all[len(all)-2:]
	count := func(path string) int { return strings.Count(read(t, path), "\n") }
	before, newest := count(last[0]), count(last[1])
	if err := os.Truncate(last[0], bundleAudit); err != nil {
		t.Fatal(err)
	}
	f(before+newest, true)
	if err := os.Remove(last[1]); err != nil { // as before the first record
		t.Fatal(err)
	}
	f(before, true)
	if _, _, err := readFiles(t.Context(), []string{filepath.Join(last[0], auditName)}, "", logQuery{}); err == nil {
		t.Error("a file is taken for the folder")
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

// TestOneWritesTheAudit: a second start is refused before it touches anything, and may take over once the first has ended.
func TestOneWritesTheAudit(t *testing.T) {
	w := open(t, nil)
	before, err := os.ReadFile(filepath.Join(w.cfg.DataDir, auditName))
	if err != nil {
		t.Fatal(err)
	}
	torn := append(before, `{"n":1`...) // as if the first were just writing
	if err := os.WriteFile(filepath.Join(w.cfg.DataDir, auditName), torn, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.cfg, w.car.log); err == nil || !strings.Contains(err.Error(), "another vra-sidecar uses data_dir") {
		t.Errorf("a second start: %v", err)
	}
	if now, err := os.ReadFile(filepath.Join(w.cfg.DataDir, auditName)); err != nil || !bytes.Equal(now, torn) {
		t.Errorf("it left %q, %v", now, err)
	}
	w.stop()
	w.start()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, auditLock), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openAudit(dir, 1, 1, time.Now); err == nil {
		t.Error("without a lock it writes")
	}
}

// TestRecordsAreBounded: nobody rotates the audit away with long names, and no record outgrows its bound.
func TestRecordsAreBounded(t *testing.T) {
	w := open(t, nil)
	for _, long := range []string{strings.Repeat("x", 60<<10), strings.Repeat("<", 60<<10), strings.Repeat("ä", 25<<10)} {
		_, err := w.client(api.RoleOperator).Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Group: long, IdempotencyKey: long[:1000]})
		failure(t, "a long key", err, api.InvalidArgument, "at most 128")
	}
	text, err := os.ReadFile(filepath.Join(w.cfg.DataDir, auditName))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	for _, line := range lines {
		if len(line) > maxRecord {
			t.Errorf("a record of %d bytes", len(line))
		}
	}
	for _, r := range w.records() {
		if len(r.Group) > maxWord || len(r.Key) > maxWord || !strings.HasSuffix(r.Group, "...") || strings.Contains(r.Group, "\ufffd") {
			t.Errorf("%s: a group of %d bytes, a key of %d: %q", r.Event, len(r.Group), len(r.Key), r.Group)
		}
	}
	a := newAudit(t, t.TempDir(), 1<<20, 3)
	if _, err := a.write(Record{Event: auditAsked, What: strings.Repeat("x", maxRecord)}); err == nil {
		t.Error("a record that is too long is written")
	}
	if n := put(t, a, "y"); n != 1 || a.mu.bytes > 1000 {
		t.Errorf("after it comes number %d in a file of %d bytes", n, a.mu.bytes)
	}
}

// TestNoFile: what could not be opened is not taken for a file.
func TestNoFile(t *testing.T) {
	if f, err := openForAppending(t.TempDir()); err == nil || f != nil {
		t.Errorf("%v, %v", f, err)
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
