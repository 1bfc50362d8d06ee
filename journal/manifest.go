package journal

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
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
	next    uint64        // number of the next entry
	durable uint64        // number of the last durable one
}

// facts is what a manifest log states, all entries taken together.
type facts struct {
	lineage   uint64
	name      string
	epoch     record.Epoch
	volumes   map[record.VolumeID]VolumeInfo
	streams   map[record.StreamID]streamFacts
	bad       map[uint64]string
	abandoned []entry
	damaged   damages
}

// streamFacts is what the manifest knows of a stream.
type streamFacts struct {
	admitted life
	applied  entry // its last entryApplied; kind 0: none
}

const (
	manifestName    = "manifest"
	manifestNew     = "manifest.new"
	maxManifest     = 1 << 20 // bytes; then it is written anew
	maxAbandoned    = 256     // entries kept; they are evidence, nothing depends on them
	maxManifestRead = 64 << 20
)

func newFacts() facts {
	return facts{volumes: map[record.VolumeID]VolumeInfo{}, streams: map[record.StreamID]streamFacts{}, bad: map[uint64]string{}}
}

// apply takes one entry in.
func (f *facts) apply(e entry) {
	switch e.kind {
	case entryGroup:
		f.lineage, f.name = e.lineage, e.name
	case entryVolume:
		f.volumes[e.volume] = VolumeInfo{ID: e.volume, Name: e.name, Bytes: e.bytes}
	case entryEpoch:
		f.epoch = max(f.epoch, e.life.epoch)
	case entryAdmitted:
		s := f.streams[e.stream]
		s.admitted = e.life
		f.streams[e.stream] = s
	case entryApplied:
		s := f.streams[e.stream]
		s.applied = e
		f.streams[e.stream] = s
	case entryBad:
		f.bad[e.number] = e.reason
	case entryAbandoned:
		f.abandoned = append(f.abandoned, e)
		f.abandoned = f.abandoned[max(0, len(f.abandoned)-maxAbandoned):]
	case entryDamaged:
		f.damaged = f.damaged.add(damage{e.volume, int64(e.number), int64(e.end), e.reason})
	case entryMark:
	}
}

// entries returns the fewest entries that state the same.
func (f *facts) entries() []entry {
	es := []entry{{kind: entryGroup, lineage: f.lineage, name: f.name}}
	if f.epoch != 0 {
		es = append(es, entry{kind: entryEpoch, life: life{epoch: f.epoch}})
	}
	for _, id := range slices.Sorted(maps.Keys(f.volumes)) {
		v := f.volumes[id]
		es = append(es, entry{kind: entryVolume, volume: v.ID, bytes: v.Bytes, name: v.Name})
	}
	for _, id := range slices.Sorted(maps.Keys(f.streams)) {
		s := f.streams[id]
		if s.admitted != (life{}) {
			es = append(es, entry{kind: entryAdmitted, stream: id, life: s.admitted})
		}
		if s.applied.kind != 0 {
			es = append(es, s.applied)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(f.bad)) {
		es = append(es, entry{kind: entryBad, number: n, reason: f.bad[n]})
	}
	for _, d := range f.damaged {
		es = append(es, d.entry())
	}
	return append(es, f.abandoned...)
}

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
	if m.file == nil || m.at > maxManifest {
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
	return nil
}

func (f *facts) clone() facts {
	g := *f
	g.volumes, g.streams, g.bad = maps.Clone(f.volumes), maps.Clone(f.streams), maps.Clone(f.bad)
	g.abandoned = slices.Clone(f.abandoned)
	return g
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
	if m.file == nil {
		return nil
	}
	err := m.file.Close()
	m.file = nil
	return err
}
