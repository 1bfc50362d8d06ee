package scenario

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tree makes files, whose content is their name, and returns the folder.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// files lists what is in a folder, without the folders.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPurgeDeletesOnlyWhatIsNamed: files of others stay, also inside the lab's own
// folders, and nothing behind a link is touched.
func TestPurgeDeletesOnlyWhatIsNamed(t *testing.T) {
	outside := tree(t, "treasure")
	dir := tree(t, "lab.json", "context.yaml", "notes.txt", "disks/vol1", "disks/mine", "logs/a.log", "logs/deep/b.log", "keep/x")
	for link, to := range map[string]string{"logs/link": outside, "linked": outside} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	m := &manifest{Version: manifestVersion, Entries: []fileName{
		{"disks", kindFolder}, {"disks/vol1", kindFile}, {"logs", kindTree}, {"context.yaml", kindFile}, {"never-made", kindFile}, {"linked", kindTree},
	}}
	stays, err := m.purge(dir)
	if err != nil || !slices.Equal(stays, []string{filepath.Join(dir, "disks")}) {
		t.Errorf("%q stay, %v", stays, err)
	}
	if got, want := files(t, dir), []string{"disks/mine", "keep/x", "notes.txt"}; !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	if got := files(t, outside); len(got) != 1 {
		t.Errorf("outside is left %q", got)
	}
}

// TestManifestNamesNothingOutside: one that was tampered with is not used.
func TestManifestNamesNothingOutside(t *testing.T) {
	f := func(ok bool, m manifest) {
		t.Helper()
		dir := t.TempDir()
		m.Version = manifestVersion
		if err := m.save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := loadManifest(dir); (err == nil) != ok {
			t.Errorf("%+v: %v", m, err)
		}
	}
	entry := func(path, kind string) manifest { return manifest{Entries: []fileName{{path, kind}}} }
	f(true, entry("disks/vol1", kindFile))
	f(false, entry("../else", kindFile))
	f(false, entry("/etc", kindTree))
	f(false, entry("a/../../b", kindTree))
	f(false, entry(".", kindTree))
	f(false, entry("", kindTree))
	f(false, entry("disks", "all"))
	f(true, manifest{RunDir: "/run/holdfast-lab-x"})
	f(false, manifest{RunDir: "/run"})
	f(false, manifest{RunDir: "/run/holdfast-lab-x/.."})
	f(false, manifest{RunDir: "holdfast-lab-x"})

	dir := tree(t, manifestName)
	if _, err := loadManifest(dir); err == nil {
		t.Error("a manifest that is no JSON is read")
	}
	if err := os.WriteFile(filepath.Join(dir, manifestName), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadManifest(dir); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer manifest: %v", err)
	}
}

func TestRunDirOfAnotherLabStays(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "lab")
	m := &manifest{Version: manifestVersion, ID: "one"}
	if err := claim(dir, m); err != nil {
		t.Fatal(err)
	}
	if err := m.makeRunDir(dir, []string{filepath.Join(above, "none"), above}); err != nil {
		t.Fatal(err)
	}
	if read, err := loadManifest(dir); err != nil || read.RunDir != m.RunDir {
		t.Errorf("the manifest names %q: %v", read.RunDir, err)
	}
	other := *m
	other.ID = "two"
	if other.removeRunDir() == nil {
		t.Error("another lab removed it")
	}
	if _, err := os.Stat(m.RunDir); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it gone
		if err := m.removeRunDir(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(m.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Error("it stays")
	}
}

func TestRunPlaces(t *testing.T) {
	f := func(uid int, xdg string, want ...string) {
		t.Helper()
		if got := runPlaces(uid, xdg); !slices.Equal(got, want) {
			t.Errorf("%d, %q: %q, want %q", uid, xdg, got, want)
		}
	}
	f(0, "/run/user/0", "/run", "/dev/shm")
	f(1000, "/run/user/1000", "/run/user/1000", "/dev/shm", "/tmp")
	f(1000, "", "/dev/shm", "/tmp")
	f(1000, "relative", "/dev/shm", "/tmp")
	f(1000, "/"+strings.Repeat("x", maxRunPlace), "/dev/shm", "/tmp")
}

func TestParseStat(t *testing.T) {
	f := func(text string, start uint64, state byte, ok bool) {
		t.Helper()
		gotStart, gotState, err := parseStat([]byte(text))
		if (err == nil) != ok || ok && (gotStart != start || gotState != state) {
			t.Errorf("%q: %d, %c, %v", text, gotStart, gotState, err)
		}
	}
	tail := " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	f("17 (vra) S"+tail, 4242, 'S', true)
	f("17 (a) Z) (b) R"+tail, 4242, 'R', true)
	f("17 (vra) S 1 2 3", 0, 0, false)
	f("17 vra S"+tail, 0, 0, false)
	f("17 (vra) SS"+tail, 0, 0, false)
	f("", 0, 0, false)
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("17 (vra) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"))
	f.Add([]byte(") S"))
	f.Fuzz(func(t *testing.T, text []byte) { parseStat(text) })
}

// TestOnlyThatVeryProcessIsEnded: a number that came to mean another is left alone.
func TestOnlyThatVeryProcessIsEnded(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	boot := bootID()
	earlier := process{PID: p.PID, Start: p.Start - 1}
	for _, other := range []struct {
		process
		boot string
	}{{earlier, boot}, {p, "another boot"}, {process{}, boot}, {process{PID: -1, Start: 1}, boot}} {
		if other.alive(other.boot) {
			t.Errorf("%+v of %s is alive", other.process, other.boot)
		}
		if err := other.end(t.Context(), other.boot, time.Second); err != nil {
			t.Error(err)
		}
	}
	if !p.alive(boot) {
		t.Fatal("the process was ended in another's name")
	}
	if err := p.end(t.Context(), boot, time.Second); err != nil {
		t.Fatal(err)
	}
	err = <-died
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGTERM {
		t.Errorf("it ended by %v (%v)", status.Signal(), err)
	}
}

func TestLogsTurnOver(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.log")
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, line := range []string{"first\n", "second\n", "third\n", "fourth\n"} {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path); got != strings.TrimSpace(line) {
			t.Errorf("last line %q", got)
		}
		if i < 3 {
			if err := turnOver(path, 5, 2); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range map[string]string{"a.log": "fourth\n", "a.log.1": "third\n", "a.log.2": "second\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := os.Stat(path + ".3"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one too many stays: %v", err)
	}
	if err := turnOver(path, 100, 2); err != nil || lastLine(path) != "fourth" {
		t.Errorf("a short log was turned over: %v", err)
	}
}

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{"/tmp/lab": "/tmp/lab", "": "''", "/tmp/my lab": "'/tmp/my lab'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := Quote(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

func TestCopyDiskKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 64 << 20
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5<<20 + 7, size - 3} {
		if _, err := f.WriteAt([]byte("abc"), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, 8<<20), 16<<20); err != nil { // zeros that take space
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	if err := copyDisk(t.Context(), from, to, size, func(n int64) { total += n }); err != nil {
		t.Fatal(err)
	}
	if total != size {
		t.Errorf("%d bytes dealt with, want %d", total, size)
	}
	a, errA := os.ReadFile(from)
	b, errB := os.ReadFile(to)
	if errA != nil || errB != nil || !slices.Equal(a, b) {
		t.Errorf("the copy differs: %v, %v", errA, errB)
	}
	info, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 4<<20 {
		t.Errorf("the copy of 9 bytes takes %d", used)
	}
}

// TestManifestOfVersion1 must pass for as long as there are labs of that version.
func TestManifestOfVersion1(t *testing.T) {
	text, err := os.ReadFile("testdata/lab-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if !m.MadeDir || m.RunDir != "/run/holdfast-lab-abcdefgh" || m.Supervisor != (process{4001, 100}) || len(m.Daemons) != 1 ||
		m.Daemons[0].process != (process{4002, 101}) || m.Ports[portTargetData] != 20004 || len(m.Entries) != 3 || m.Volumes[0].Size != 1<<20 {
		t.Errorf("read as %+v", m)
	}
}

func FuzzManifest(f *testing.F) {
	text, err := os.ReadFile("testdata/lab-v1.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err != nil {
			return
		}
		for _, e := range m.Entries {
			if !filepath.IsLocal(e.Path) {
				t.Fatalf("entry %q is accepted", e.Path)
			}
		}
		for _, d := range m.Daemons {
			if d == nil {
				t.Fatal("a daemon that is none is accepted")
			}
		}
	})
}
