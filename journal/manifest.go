package journal

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var errNoEntry = errors.New("no entry")

// manifest is the manifest log of a group: what the target itself decided, durable.
//
// It is one file of entries, appended and synced. Opening it writes the state anew,
// as one file renamed into place: what was read may have been in the page cache only.
// The same is done when the file has grown long, and after a failed write or sync,
// which must not be tried again on the same file.
type manifest struct {
	fs    ioengine.FS
	dir   string
	group record.GroupID

	mu      sync.Mutex
	facts   facts
	file    ioengine.File // nil: to be written anew
	at      int64         // where the next entry goes
	limit   int64         // bytes; beyond it the file is written anew
	closed  bool
	next    uint64 // number of the next entry
	durable uint64 // number of the last durable one
}

const (
	manifestName    = "manifest"
	manifestNew     = "manifest.new"
	maxManifest     = 1 << 20 // bytes; beyond it and twice what was needed it is written anew
	maxManifestRead = 64 << 20
)

// createManifest writes the first manifest of a group in its folder.
func createManifest(fs ioengine.FS, dir string, info GroupInfo) (*manifest, error) {
	m := &manifest{fs: fs, dir: dir, group: info.ID, facts: newFacts(), next: 1}
	m.facts.lineage, m.facts.name = info.Lineage, info.Name
	if err := m.rewriteLocked(nil); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

// openManifest reads the manifest in a group's folder and writes it anew.
func openManifest(fs ioengine.FS, dir string, group record.GroupID) (*manifest, error) {
	m := &manifest{fs: fs, dir: dir, group: group, facts: newFacts()}
	p, err := readManifest(fs, path.Join(dir, manifestName))
	if err == nil {
		err = m.replay(p)
	}
	if err == nil {
		err = m.rewriteLocked(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

func readManifest(fs ioengine.FS, name string) ([]byte, error) {
	f, err := fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxManifestRead {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrCorrupt)
	}
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); n < len(p) {
		return nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return p, nil
}

// replay takes in all entries of p. What follows the last good entry was never
// acknowledged, unless an entry further on says that it was.
func (m *manifest) replay(p []byte) error {
	at := 0
	for ; at+slotBytes <= len(p); at += slotBytes {
		f, e, err := parseEntry(p[at:at+slotBytes], m.group)
		if errors.Is(err, ErrFormat) {
			return err
		}
		if err != nil || at > 0 && f.number != m.next || at == 0 && e.kind != entryGroup {
			break
		}
		m.facts.apply(e)
		m.next = f.number + 1
	}
	if at == 0 {
		return fmt.Errorf("first entry: %w", ErrCorrupt)
	}
	for rest := at + slotBytes; rest+slotBytes <= len(p); rest += slotBytes {
		f, _, err := parseEntry(p[rest:rest+slotBytes], m.group)
		if err == nil && f.durable >= m.next && !invariant.Planted("journal/manifest-cut") {
			return fmt.Errorf("entry %d at %d was durable and is damaged: %w", m.next, at, ErrCorrupt)
		}
	}
	return nil
}

// put states the entries, and returns when they are durable. With witness a mark
// follows, so that damage to the last of them cannot pass for a torn tail.
func (m *manifest) put(witness bool, es ...entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.putLocked(es); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if witness {
		if err := m.putLocked([]entry{{kind: entryMark}}); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
	}
	return nil
}

func (m *manifest) putLocked(es []entry) error {
	if m.closed {
		return ErrClosed
	}
	if m.file == nil || m.at > m.limit {
		return m.rewriteLocked(es)
	}
	var p []byte
	for i, e := range es {
		p = appendEntry(p, frame{m.group, m.next + uint64(i), m.durable}, e)
	}
	_, err := m.file.WriteAt(p, m.at)
	if err == nil && !invariant.Planted("journal/manifest-no-sync") {
		err = m.file.Sync()
	}
	if err != nil { // final for this file
		return m.rewriteLocked(es)
	}
	for _, e := range es {
		m.facts.apply(e)
	}
	m.at += int64(len(p))
	m.next += uint64(len(es))
	m.durable = m.next - 1
	return nil
}

// rewriteLocked replaces the file by one that states the facts and the entries more.
func (m *manifest) rewriteLocked(more []entry) error {
	if m.file != nil {
		m.file.Close() // nothing in it is waited for any more
		m.file = nil
	}
	name := path.Join(m.dir, manifestNew)
	f, err := m.fs.Open(name, ioengine.Create)
	if err != nil {
		return err
	}
	next, facts := m.next, m.facts.clone()
	if next == 0 {
		next = 1
	}
	for _, e := range more {
		facts.apply(e)
	}
	var p []byte
	for _, e := range append(facts.entries(), entry{kind: entryMark}) {
		// Durable all: the file is not read before it was synced and got its name.
		p = appendEntry(p, frame{m.group, next, next - 1}, e)
		next++
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(p, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = m.fs.Rename(name, path.Join(m.dir, manifestName))
	}
	if err == nil {
		err = m.fs.SyncDir(m.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	m.file, m.facts, m.at, m.next, m.durable = f, facts, int64(len(p)), next, next-1
	m.limit = max(maxManifest, 2*m.at)
	return nil
}

// knows says whether it is stated that the life was admitted.
func (m *manifest) knows(stream record.StreamID, l life) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts.epoch >= l.epoch && m.facts.streams[stream].admitted == l
}

// now returns a copy of the facts.
func (m *manifest) now() facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts.clone()
}

func (m *manifest) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.file == nil {
		return nil
	}
	err := m.file.Close()
	m.file = nil
	return err
}
