package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Removed tells of a group that is kept no more. Its id is never taken again in this store.
type Removed struct {
	ID      record.GroupID
	Name    string
	Lineage uint64
	At      time.Time // when, by the wall clock: a label

	// Disks are its volumes as plain files, as they were at Checkpoint; none: nothing was kept.
	Checkpoint uint64
	Disks      []KeptDisk

	// Left says why something of it still takes space; nil: nothing does, or it is being freed.
	Left error

	machines bool   // its disks are those that machines run on: they stay where they stand
	views    uint64 // the highest number of a view that the store had drawn
}

// KeptDisk is a volume that stays as a plain file.
type KeptDisk struct {
	VolumeInfo
	File      string // its name in the store's file system
	Elsewhere bool   // it stands where the group found it when it adopted it, and not among the store's
}

// removedFile is a Removed in the group's folder: see FORMAT.md.
type removedFile struct {
	Format     int             `json:"format"`
	Group      string          `json:"group"`
	Name       string          `json:"name"`
	Lineage    uint64          `json:"lineage"`
	At         int64           `json:"at"`
	Views      uint64          `json:"views"`
	Checkpoint uint64          `json:"checkpoint,omitempty"`
	Volumes    []removedVolume `json:"volumes,omitempty"`
}

type removedVolume struct {
	ID    uint32 `json:"id"`
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	Path  string `json:"path,omitempty"` // of a disk that stands elsewhere; from format 2 on
}

const (
	removedName    = "removed"
	removedNew     = "removed.new"
	removedFormat  = 3 // 1, which every release reads, where no disk stands elsewhere; 2 where none of those is in the group's folder
	removedSumText = 9 // the CRC32C of what follows, in eight hexadecimal digits, and a line feed
	maxRemoved     = 4 << 20
)

// encode is r as a file.
func (r *Removed) encode() []byte {
	f := removedFile{Format: 1, Group: r.ID.String(), Name: r.Name, Lineage: r.Lineage, At: r.At.UnixNano(), Views: r.views, Checkpoint: r.Checkpoint}
	for _, d := range r.Disks {
		v := removedVolume{ID: uint32(d.ID), Name: d.Name, Bytes: d.Bytes}
		if d.Elsewhere {
			v.Path, f.Format = d.File, 2
		}
		f.Volumes = append(f.Volumes, v)
	}
	if r.machines {
		f.Format = 3
	}
	p, err := json.Marshal(f)
	if err != nil {
		panic("BUG: journal: removed: " + err.Error())
	}
	p = append(p, '\n')
	return append(fmt.Appendf(nil, "%08x\n", checksum(p)), p...)
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// parseRemoved reads what encode wrote. ErrCorrupt; ErrFormat: it is of a newer release.
func parseRemoved(p []byte) (*Removed, error) {
	if len(p) < removedSumText {
		return nil, fmt.Errorf("%d bytes: %w", len(p), ErrCorrupt)
	}
	sum, err := strconv.ParseUint(strings.TrimSuffix(string(p[:removedSumText]), "\n"), 16, 32)
	if p = p[removedSumText:]; (err != nil || checksum(p) != uint32(sum)) && !invariant.Planted("journal/removed-no-crc") {
		return nil, fmt.Errorf("checksum: %w", ErrCorrupt)
	}
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(p, &version); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if version.Format < 1 || version.Format > removedFormat {
		return nil, fmt.Errorf("format %d: %w", version.Format, ErrFormat)
	}
	var f removedFile
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	id, err := strconv.ParseUint(f.Group, 16, 64)
	if err != nil || id == 0 || record.GroupID(id).String() != f.Group || (f.Checkpoint == 0) != (len(f.Volumes) == 0) || d.More() {
		return nil, fmt.Errorf("group %q, checkpoint %d, %d volumes: %w", f.Group, f.Checkpoint, len(f.Volumes), ErrCorrupt)
	}
	r := &Removed{ID: record.GroupID(id), Name: f.Name, Lineage: f.Lineage, At: time.Unix(0, f.At), Checkpoint: f.Checkpoint, views: f.Views, machines: f.Format == 3}
	for _, v := range f.Volumes {
		if v.ID == 0 || v.Bytes <= 0 || v.Bytes > record.VolumeLimit || v.Path != "" && (f.Format < 2 || !path.IsAbs(v.Path)) || v.Path == "" && r.machines {
			return nil, fmt.Errorf("volume %d of %d bytes at %q: %w", v.ID, v.Bytes, v.Path, ErrCorrupt)
		}
		r.Disks = append(r.Disks, KeptDisk{VolumeInfo: VolumeInfo{ID: record.VolumeID(v.ID), Name: v.Name, Bytes: v.Bytes}, File: v.Path, Elsewhere: v.Path != ""})
	}
	return r, nil
}

// readRemoved reads it from a group's folder; nil: the group is not removed.
func (s *Store) readRemoved(dir string, id record.GroupID) (*Removed, error) {
	p, err := readManifest(s.cfg.FS, path.Join(dir, removedName)) // it is no larger either
	if isAbsent(err) {
		return nil, nil
	}
	if err == nil && len(p) > maxRemoved {
		err = fmt.Errorf("%d bytes: %w", len(p), ErrCorrupt)
	}
	var r *Removed
	if err == nil {
		r, err = parseRemoved(p)
	}
	if err == nil && r.ID != id {
		err = fmt.Errorf("it is of group %s: %w", r.ID, ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("removed: %w", err)
	}
	for i := range r.Disks {
		if d := &r.Disks[i]; !d.Elsewhere {
			d.File = s.keptFile(id, d.ID)
		}
	}
	return r, nil
}

// keptDir is where plain disks of removed groups stand, in a folder for each.
func (s *Store) keptDir() string { return path.Join(s.cfg.Dir, keptName) }

func (s *Store) keptFile(group record.GroupID, volume record.VolumeID) string {
	return path.Join(s.keptDir(), group.String(), fmt.Sprintf("%08x.raw", uint32(volume)))
}

const keptName = "kept"

// Removed tells of all groups that were removed, in no order.
func (s *Store) Removed() (all []Removed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.removed {
		all = append(all, *r)
	}
	return all
}

// isRemoved says so of a group, with why nothing of it is taken.
func (s *Store) isRemoved(id record.GroupID) error {
	s.mu.Lock()
	r := s.removed[id]
	s.mu.Unlock()
	if r == nil || invariant.Planted("journal/removed-comes-back") {
		return nil
	}
	return fmt.Errorf("journal: group %s (%s) was removed here on %s; protect its disks as a group with another id: %w",
		id, oneLine(errors.New(r.Name)), r.At.UTC().Format("2006-01-02 15:04"), ErrRemoved)
}
