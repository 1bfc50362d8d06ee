package datapath

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A turn says that this VRA's part in a group is another one than its configuration says, since the group's
// protection was reversed. It is one file of the data directory a group's name, made whole and synced
// before anything is done about it; the last reversal counts.
//
//   - A target that hands over writes its turn, then gives the disks away. The turn counts once they are
//     given away: from then on the VRA is the group's source.
//   - A source that has adopted its disks writes its turn then: it sends the group, which keeps its lineage, no more.
//
// The parts are taken when the process opens its files, so a turn ends with a new opening of them all.
type turn struct {
	Version int             `json:"version"`
	Name    string          `json:"group"`
	Part    string          `json:"part"`          // source or target
	Old     record.GroupID  `json:"old,omitempty"` // of a source: the group that it was the target of
	ID      record.GroupID  `json:"id"`
	Stream  record.StreamID `json:"stream"`
	Lineage uint64          `json:"lineage"`
	Disks   []turnDisk      `json:"disks"`
	Source  *turnSource     `json:"source,omitempty"`
}

// turnDisk is a disk of the group.
type turnDisk struct {
	ID    record.VolumeID `json:"id"`
	Name  string          `json:"volume"`
	Bytes int64           `json:"bytes"`
	Path  string          `json:"path"`
}

// turnSource is what a source needs to know.
type turnSource struct {
	Control  string        `json:"control"`
	Data     string        `json:"data"`
	Pool     string        `json:"pool"` // of the filter
	NBD      string        `json:"nbd"`  // where machines look for the disks
	Interval time.Duration `json:"interval"`
}

const (
	turnVersion = 1
	turnPrefix  = "turn-"
	partSource  = "source"
	partTarget  = "target"

	turnWindow = 256 << 20 // bytes of records not acknowledged
)

// turnFile is the file of a group; names of groups are no names of files.
func turnFile(dir, group string) string {
	return filepath.Join(dir, turnPrefix+hex.EncodeToString([]byte(group)))
}

// readTurn reads the turn of a group; nil: there is none.
func readTurn(dir, group string) (*turn, error) {
	name := turnFile(dir, group)
	p, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := parseTurn(p)
	if err == nil && t.Name != group {
		err = fmt.Errorf("it is of group %q", t.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// parseTurn reads the text of a turn, of this version alone.
func parseTurn(p []byte) (*turn, error) {
	t := new(turn)
	if err := json.Unmarshal(p, t); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if t.Version != turnVersion {
		return nil, fmt.Errorf("version %d, this release knows %d: %w", t.Version, turnVersion, ErrFormat)
	}
	if t.Name == "" || t.ID == 0 || t.Stream == 0 || t.Lineage == 0 || len(t.Disks) == 0 ||
		t.Part != partTarget && (t.Part != partSource || t.Source == nil || t.Old == 0 || t.Source.Control == "" || t.Source.Data == "" || t.Source.Pool == "" || t.Source.Interval <= 0) {
		return nil, errors.New("it is damaged: something is missing")
	}
	for _, d := range t.Disks {
		if d.ID == 0 || d.Name == "" || d.Bytes <= 0 || !filepath.IsAbs(d.Path) {
			return nil, fmt.Errorf("it is damaged: disk %+v", d)
		}
	}
	return t, nil
}

// write makes the turn durable.
func (t *turn) write(dir string) error {
	t.Version = turnVersion
	p, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(turnFile(dir, t.Name), append(p, '\n'))
}

// readTurns reads all turns in a data directory, by the group's name.
func readTurns(dir string) (map[string]*turn, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	turns := make(map[string]*turn)
	for _, e := range all {
		digits, ok := strings.CutPrefix(e.Name(), turnPrefix)
		name, err := hex.DecodeString(digits)
		if !ok || err != nil {
			continue
		}
		t, err := readTurn(dir, string(name))
		if err != nil {
			return nil, err
		}
		if t != nil {
			turns[t.Name] = t
		}
	}
	return turns, nil
}

// SourceGroups are the groups that a VRA is the source of: those that its configuration says, but for what was reversed since.
// The target, nil where there is none, has opened its store.
func SourceGroups(dataDir string, configured []GroupConfig, target *Target) (groups []GroupConfig, err error) {
	turns, err := readTurns(dataDir)
	if err != nil {
		return nil, err
	}
	for _, g := range configured {
		if t := turns[g.Name]; t == nil || !t.ends(g) || !t.counts(target) || invariant.Planted("datapath/both-send") {
			groups = append(groups, g)
		}
	}
	for _, t := range turns {
		if t.Part != partSource || !t.counts(target) {
			continue
		}
		if err := t.begun(dataDir); err != nil {
			return nil, fmt.Errorf("group %s: %w", t.Name, err)
		}
		groups = append(groups, t.group())
	}
	return groups, nil
}

// ends says whether the turn, once it counts, keeps a configured group of its name from being sent as the configuration says. A
// reversal keeps the lineage: one with another is none of its business.
func (t *turn) ends(g GroupConfig) bool { return t.Part == partSource || t.Lineage == g.Lineage }

// counts says whether the turn is taken: a source has its disks only once they were given away.
func (t *turn) counts(target *Target) bool {
	if t.Part == partTarget { // until the group is removed: its name may be another group's then
		return target == nil || !target.removed(t.ID) || invariant.Planted("datapath/removed-turn-counts")
	}
	if target == nil {
		return false
	}
	g, ok := target.store.Group(t.Old)
	return ok && g.Released() || invariant.Planted("datapath/turns-early")
}

// removed says whether a group was removed from the target's store.
func (t *Target) removed(id record.GroupID) bool {
	return slices.ContainsFunc(t.store.Removed(), func(r journal.Removed) bool { return r.ID == id })
}

// begun notes the life that the target states of what its disks hold, so that it is known as ours.
func (t *turn) begun(dataDir string) error {
	i := openIncarnations(dataDir, t.Stream)
	d, err := i.get()
	if err != nil || d.last >= journal.AdoptedIncarnation {
		return err
	}
	return i.put(drawn{last: journal.AdoptedIncarnation, ours: []record.Incarnation{journal.AdoptedIncarnation}})
}

func (t *turn) group() GroupConfig {
	g := GroupConfig{Name: t.Name, ID: t.ID, Stream: t.Stream, Lineage: t.Lineage, Interval: t.Source.Interval, Window: turnWindow,
		Control: t.Source.Control, Data: t.Source.Data, Filters: []string{t.Source.Pool}}
	for _, d := range t.Disks {
		g.Volumes = append(g.Volumes, VolumeName{ID: d.ID, Name: d.Name})
	}
	return g
}
