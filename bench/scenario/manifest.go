package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	manifestName    = "lab.json"
	manifestVersion = 1
	maxManifest     = 1 << 20
	markerName      = "lab" // in the runtime folder: the lab's id
	runPrefix       = "holdfast-lab-"
	directLink      = "direct"
)

// manifest is what a lab consists of. Up writes it until the supervisor runs, then
// the supervisor alone does.
type manifest struct {
	Version int       `json:"version"`
	ID      string    `json:"id"` // random; stands in the runtime folder too
	Made    time.Time `json:"made"`
	MadeDir bool      `json:"made_dir"` // the folder itself was not there before
	RunDir  string    `json:"run_dir,omitempty"`
	Boot    string    `json:"boot"` // the boot that the processes belong to

	Group    string         `json:"group"`
	Link     string         `json:"link"` // its rate: as set last; or directLink
	Volumes  []Volume       `json:"volumes"`
	Ports    map[string]int `json:"ports"`
	Binaries string         `json:"binaries"`

	Maker      process    `json:"maker"` // the command that brings it up
	Supervisor process    `json:"supervisor"`
	Daemons    []*daemon  `json:"daemons"`
	Entries    []fileName `json:"entries"` // in the order they were made
}

// fileName is something the lab made in its folder. Path is relative and local.
type fileName struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
}

// Kinds of what a lab makes: a file; a folder, removed only when empty; a folder
// whose whole content is the lab's.
const (
	kindFile   = "file"
	kindFolder = "folder"
	kindTree   = "tree"
)

// daemon is one supervised process.
type daemon struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
	process
}

// claim makes the manifest of a new lab in dir, which must be empty or not there.
// Of two that try at the same time, one gets it.
func claim(dir string, m *manifest) (err error) {
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		m.MadeDir = true
	case errors.Is(err, fs.ErrExist):
		if err := checkEmpty(dir); err != nil {
			return err
		}
	case errors.Is(err, fs.ErrNotExist): // though what is above it exists
		return fmt.Errorf("nothing can be made in %s: name a folder on a disk", filepath.Dir(dir))
	default:
		return fmt.Errorf("%w: name a folder that you may write to", err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, manifestName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return checkEmpty(dir)
		}
		return errors.Join(err, m.unmakeDir(dir))
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()), m.unmakeDir(dir))
	}
	return nil
}

func (m *manifest) unmakeDir(dir string) error {
	if !m.MadeDir {
		return nil
	}
	return os.Remove(dir)
}

// CheckDir says why no lab can be made in dir, as far as that shows before it is tried.
func CheckDir(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	above := filepath.Dir(dir)
	if info, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the folder above it does not exist: make it first", dir)
	} else if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is a file, and no folder can be made in it", above)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return checkEmpty(dir)
}

// checkEmpty says what stands in a folder that should be empty.
func checkEmpty(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		if info, statErr := os.Stat(dir); statErr == nil && !info.IsDir() {
			return fmt.Errorf("%s is a file: name a folder that is empty or does not exist", dir)
		}
		return err
	}
	if m, err := loadManifest(dir); err == nil {
		if m.anyAlive() || m.Maker.alive(m.Boot) {
			return fmt.Errorf("%s is in use by a running lab: name another folder, or see that lab with: %s", dir, Command("lab", "status", "--dir", dir))
		}
		return fmt.Errorf("%s holds a lab that has ended: start it again with: %s, or name another folder", dir, Command("lab", "start", "--dir", dir))
	}
	if len(names) > 0 {
		return fmt.Errorf("%s is not empty: name a folder that is empty or does not exist", dir)
	}
	return nil
}

// loadManifest reads and checks the manifest in dir.
func loadManifest(dir string) (*manifest, error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is no lab: it has no %s: name a lab's folder, or start a lab there with: %s", dir, manifestName, Command("lab", "up", "--dir", dir))
		}
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return m, nil
}

// parseManifest reads a manifest; what it returns is safe to act on.
func parseManifest(text []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("version %d, and this program knows only %d", m.Version, manifestVersion)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// check refuses a manifest that names anything outside the lab's two folders.
func (m *manifest) check() error {
	for _, e := range m.Entries {
		if !invariant.Planted("scenario/any-path") && (!filepath.IsLocal(e.Path) || filepath.Clean(e.Path) != e.Path || e.Path == ".") {
			return fmt.Errorf("entry %q is not inside the lab", e.Path)
		}
		if e.Kind != kindFile && e.Kind != kindFolder && e.Kind != kindTree {
			return fmt.Errorf("entry %q is of the unknown kind %q", e.Path, e.Kind)
		}
	}
	for _, d := range m.Daemons {
		if d == nil || d.Name == "" || len(d.Command) == 0 {
			return errors.New("a daemon without name or command")
		}
	}
	if m.RunDir != "" && (!filepath.IsAbs(m.RunDir) || filepath.Clean(m.RunDir) != m.RunDir || !strings.HasPrefix(filepath.Base(m.RunDir), runPrefix)) {
		return fmt.Errorf("runtime folder %q is none of a lab", m.RunDir)
	}
	return nil
}

// save replaces the manifest in dir. A crash leaves the old one or the new one.
func (m *manifest) save(dir string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, manifestName), text)
}

func replaceFile(path string, text []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, path)
}

// name notes what is about to be made.
func (m *manifest) name(dir, path, kind string) error {
	m.Entries = append(m.Entries, fileName{Path: path, Kind: kind})
	return m.save(dir)
}

// anyAlive says whether a process of the lab runs.
func (m *manifest) anyAlive() bool {
	for _, p := range m.processes() {
		if p.alive(m.Boot) {
			return true
		}
	}
	return false
}

func (m *manifest) processes() []process {
	all := []process{m.Supervisor}
	for _, d := range m.Daemons {
		all = append(all, d.process)
	}
	return all
}

// purge deletes what the manifest names, last made first, and the manifest itself;
// the folder too when the lab made it and nothing else is in it. It returns what
// stays because others put it there.
func (m *manifest) purge(dir string) (stays []string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var errs []error
	for i := len(m.Entries) - 1; i >= 0; i-- {
		e := m.Entries[i]
		if e.Kind == kindTree || invariant.Planted("scenario/purge-all") {
			err = root.RemoveAll(e.Path)
		} else if err = root.Remove(e.Path); err != nil && e.Kind == kindFolder && holdsSomething(root, e.Path) {
			stays = append(stays, filepath.Join(dir, e.Path))
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return stays, errors.Join(errs...) // the manifest stays, so that it can be tried again
	}
	for _, name := range []string{manifestName + ".next", manifestName} {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return stays, err
		}
	}
	if m.MadeDir && os.Remove(dir) != nil {
		stays = append(stays, dir)
	}
	return stays, nil
}

func holdsSomething(root *os.Root, path string) bool {
	f, err := root.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return err == nil && len(names) > 0
}

// removeRunDir deletes the runtime folder, if it carries this lab's mark.
func (m *manifest) removeRunDir() error {
	if m.RunDir == "" {
		return nil
	}
	mark, err := os.ReadFile(filepath.Join(m.RunDir, markerName))
	if errors.Is(err, fs.ErrNotExist) {
		// Gone already, or made and not yet marked: then it is empty, or none of ours.
		if err := os.Remove(m.RunDir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	if string(mark) != m.ID && !invariant.Planted("scenario/unmarked") {
		return fmt.Errorf("%s belongs to another lab: it was left alone", m.RunDir)
	}
	return os.RemoveAll(m.RunDir)
}
