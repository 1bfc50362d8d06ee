package roster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Phase is how far a volume has come.
type Phase string

// The phases.
const (
	Adding  Phase = "adding"
	Joining Phase = "joining"
	Member  Phase = "member"
	Gone    Phase = "gone"
)

// Volume is one volume of a group.
type Volume struct {
	ID     record.VolumeID `json:"id"`
	Name   string          `json:"name"`
	Phase  Phase           `json:"phase"`
	Own    bool            `json:"own,omitempty"`    // a command added it, the configuration does not know it
	Socket string          `json:"socket,omitempty"` // of its filter's pool; empty: not learned yet
}

// Roster is what was asked of one group. The zero value is a group of which nothing is known.
type Roster struct {
	Format  int               `json:"format"`
	Paused  bool              `json:"paused,omitempty"`
	Removed int64             `json:"removed,omitempty"` // when the group was given up for good, wall clock ns; 0: it was not
	Again   []record.VolumeID `json:"again,omitempty"`   // to be marked dirty as a whole, and not marked yet
	Volumes []Volume          `json:"volumes"`           // by id
}

// format is of the files of this version.
const format = 1

// maxKnown bounds the volumes that a group ever had.
const maxKnown = 16 * record.MaxVolumes

// What may be wrong with a change.
var (
	ErrFormat   = errors.New("roster of an unknown format")
	ErrNoVolume = errors.New("no such volume")
	ErrTaken    = errors.New("is taken")
	ErrLast     = errors.New("the last volume of a group stays")
	ErrRemoved  = errors.New("the group is removed")
)

// Parse reads what Encode wrote.
func Parse(p []byte) (r Roster, err error) {
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Roster{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if d.More() {
		return Roster{}, fmt.Errorf("%w: something follows it", ErrFormat)
	}
	return r, r.check()
}

// check says why no version of ours wrote r.
func (r *Roster) check() error {
	if r.Format != format {
		return fmt.Errorf("%w: %d, this version knows %d", ErrFormat, r.Format, format)
	}
	names := map[string]bool{}
	for i, v := range r.Volumes {
		known := v.Phase == Adding || v.Phase == Joining || v.Phase == Member || v.Phase == Gone
		if v.ID == 0 || v.Name == "" || !known || i > 0 && v.ID <= r.Volumes[i-1].ID || v.Phase != Gone && names[v.Name] {
			return fmt.Errorf("%w: volume %d %q %q", ErrFormat, v.ID, v.Name, v.Phase)
		}
		names[v.Name] = names[v.Name] || v.Phase != Gone
	}
	for _, id := range r.Again {
		if v := r.volume(id); v == nil || v.Phase == Gone {
			return fmt.Errorf("%w: volume %d is to be sent again, and is not there", ErrFormat, id)
		}
	}
	return nil
}

// Encode is r as a file.
func (r Roster) Encode() []byte {
	r.Format = format
	p, err := json.Marshal(r)
	if err != nil {
		panic("BUG: roster: " + err.Error())
	}
	return append(p, '\n')
}

// Configure takes over what the configuration says of the volumes: ID and Name. It reports
// whether r is another one now.
func (r *Roster) Configure(volumes []Volume) (changed bool) {
	before := string(r.Encode())
	first := len(r.Volumes) == 0
	r.Format = format
	for i := range r.Volumes {
		v := &r.Volumes[i]
		if !v.Own && !slices.ContainsFunc(volumes, func(c Volume) bool { return c.ID == v.ID }) {
			r.leave(v)
		}
	}
	for _, c := range volumes {
		switch v := r.volume(c.ID); {
		case v == nil && (first || invariant.Planted("roster/new-is-member")):
			r.insert(Volume{ID: c.ID, Name: c.Name, Phase: Member})
		case v == nil:
			r.insert(Volume{ID: c.ID, Name: c.Name, Phase: Adding})
		default:
			v.Name, v.Own = c.Name, false
		}
	}
	return string(r.Encode()) != before
}

func (r *Roster) insert(v Volume) {
	i, _ := slices.BinarySearchFunc(r.Volumes, v.ID, func(v Volume, id record.VolumeID) int { return int(int64(v.ID) - int64(id)) })
	r.Volumes = slices.Insert(slices.Clone(r.Volumes), i, v)
}

func (r *Roster) leave(v *Volume) {
	v.Phase = Gone
	r.Again = slices.DeleteFunc(slices.Clone(r.Again), func(id record.VolumeID) bool { return id == v.ID })
}

func (r *Roster) volume(id record.VolumeID) *Volume {
	if i := slices.IndexFunc(r.Volumes, func(v Volume) bool { return v.ID == id }); i >= 0 {
		return &r.Volumes[i]
	}
	return nil
}

// Clone is a copy that shares nothing with r.
func (r Roster) Clone() Roster {
	r.Volumes, r.Again = slices.Clone(r.Volumes), slices.Clone(r.Again)
	return r
}

// Find returns the volume of that name that is not gone.
func (r *Roster) Find(name string) (Volume, bool) {
	for _, v := range r.Volumes {
		if v.Name == name && v.Phase != Gone {
			return v, true
		}
	}
	return Volume{}, false
}

// Add states a volume that a command brings, served by the filter of that pool socket.
func (r *Roster) Add(id record.VolumeID, name, socket string) error {
	if v := r.volume(id); v != nil && !invariant.Planted("roster/id-again") {
		return fmt.Errorf("id %d %w: it is or was that of volume %s", id, ErrTaken, v.Name)
	}
	if _, ok := r.Find(name); ok {
		return fmt.Errorf("name %s %w", name, ErrTaken)
	}
	if len(r.Volumes) >= maxKnown || len(r.in()) >= record.MaxVolumes {
		return fmt.Errorf("the group has or had %d volumes: no more place %w", len(r.Volumes), ErrTaken)
	}
	r.insert(Volume{ID: id, Name: name, Phase: Adding, Own: true, Socket: socket})
	return nil
}

// Remove states that a volume is gone.
func (r *Roster) Remove(name string) (Volume, error) {
	v, ok := r.Find(name)
	if !ok {
		return Volume{}, fmt.Errorf("%s: %w", name, ErrNoVolume)
	}
	if v.Phase == Member && len(r.Members()) == 1 {
		return Volume{}, fmt.Errorf("%s: %w: stop protecting the group instead", name, ErrLast)
	}
	r.leave(r.volume(v.ID))
	return v, nil
}

// Advance states that a volume has come to the next phase: all of an adding one was marked,
// all of a joining one is at the target. Of any other it states nothing, and says so.
func (r *Roster) Advance(id record.VolumeID, from Phase) bool {
	v := r.volume(id)
	if v == nil || v.Phase != from {
		return false
	}
	switch from {
	case Adding:
		v.Phase = Joining
	case Joining:
		v.Phase = Member
	default:
		return false
	}
	return true
}

// SendAgain states that the volumes are to be marked as a whole; none is all that are there.
func (r *Roster) SendAgain(names ...string) error {
	ids := slices.Clone(r.Again)
	if len(names) == 0 {
		for _, v := range r.in() {
			names = append(names, v.Name)
		}
	}
	for _, name := range names {
		v, ok := r.Find(name)
		if !ok {
			return fmt.Errorf("%s: %w", name, ErrNoVolume)
		}
		if !slices.Contains(ids, v.ID) {
			ids = append(ids, v.ID)
		}
	}
	slices.Sort(ids)
	r.Again = ids
	return nil
}

// Marked states that the volume was marked as a whole.
func (r *Roster) Marked(id record.VolumeID) {
	r.Again = slices.DeleteFunc(slices.Clone(r.Again), func(a record.VolumeID) bool { return a == id })
}

// Learn notes which filter serves a volume, and reports whether that is news.
func (r *Roster) Learn(id record.VolumeID, socket string) bool {
	v := r.volume(id)
	if v == nil || v.Socket == socket {
		return false
	}
	v.Socket = socket
	return true
}

// in are the volumes that are not gone.
func (r *Roster) in() []Volume {
	return slices.DeleteFunc(slices.Clone(r.Volumes), func(v Volume) bool { return v.Phase == Gone })
}

// Wanted are the volumes that filters must serve, by id.
func (r *Roster) Wanted() []Volume { return r.in() }

// Members are the volumes that cuts name, by id.
func (r *Roster) Members() []Volume {
	return slices.DeleteFunc(r.in(), func(v Volume) bool { return v.Phase != Member && !invariant.Planted("roster/all-are-members") })
}

// Phase is that of a volume; Gone for one that nobody knows.
func (r *Roster) Phase(id record.VolumeID) Phase {
	if v := r.volume(id); v != nil {
		return v.Phase
	}
	return Gone
}

// Left says whether the volume was once of the group and is gone.
func (r *Roster) Left(id record.VolumeID) bool {
	v := r.volume(id)
	return v != nil && v.Phase == Gone
}

// Sockets are those of the filters to be followed: the configured ones, and of each volume
// that a command added; also of one that is gone, as its filter may still stand in the
// group's order. Of a group that is removed there are none.
func (r *Roster) Sockets(configured []string) []string {
	if r.Removed != 0 && !invariant.Planted("roster/removed-is-followed") {
		return nil
	}
	all := slices.Clone(configured)
	for _, v := range r.Volumes {
		if v.Own && v.Socket != "" && !slices.Contains(all, v.Socket) {
			all = append(all, v.Socket)
		}
	}
	return all
}

// GiveUp states that nothing of the group is wanted any more, for good.
func (r *Roster) GiveUp(now int64) {
	if r.Removed == 0 {
		r.Removed, r.Paused, r.Again = now, false, nil
	}
}

// Rests says whether nothing of the group is to be sent.
func (r *Roster) Rests() bool { return r.Paused || r.Removed != 0 }

// Needed says whether the group needs the filter of that socket: not one that is known to
// serve nothing but volumes that are gone, or not begun with. One of which nothing is known is
// needed. Without that of a joining volume the group cannot begin anew: what the volume's
// generations hold would be missed.
func (r *Roster) Needed(socket string) bool {
	known := false
	for _, v := range r.Volumes {
		if v.Socket == socket {
			if v.Phase == Member || v.Phase == Joining {
				return true
			}
			known = true
		}
	}
	return !known
}
