package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// dump is a store that is looked into, or a set of stores.
type dump struct {
	options
	name     string // of the store, as it was given
	dir      string // of the journal, in the overlay
	out, log io.Writer
	lock     io.Closer // of the store itself; nil where it cannot be taken, on a read-only disk
	set      *stripe.Set
	beneath  *overlay // of the set's folders; nil: there is no set
	overlay  *overlay
	store    *journal.Store
}

// openDump opens the store over memory. ErrLocked: a daemon has it.
func openDump(name string, o options, out, log io.Writer) (*dump, error) {
	d := &dump{options: o, name: name, out: out, log: log}
	dirs := strings.Split(name, ",")
	for i := range dirs {
		dirs[i] = path.Clean(dirs[i])
	}
	ofSet := len(dirs) > 1
	for _, dir := range dirs {
		names, err := ioengine.OS().List(dir)
		if err != nil && len(dirs) == 1 {
			return nil, fmt.Errorf("store: %w", err)
		}
		ofSet = ofSet || stripe.IsStore(names)
		if !ofSet {
			if err := recognise(dir, names); err != nil {
				return nil, err
			}
		}
	}
	open := d.openFolder
	if ofSet {
		open = d.openSet
	}
	err := open(dirs)
	if err == nil {
		err = d.open()
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *dump) openFolder(dirs []string) (err error) {
	d.dir, d.overlay = dirs[0], newOverlay(ioengine.OS())
	d.lock, err = ioengine.OS().Lock(path.Join(d.dir, "lock"))
	if errors.Is(err, ioengine.ErrLocked) {
		return inUse(d.dir, err)
	}
	return nil
}

func inUse(dir string, err error) error {
	return fmt.Errorf("%s: %w: stop the daemon that has it open, or look at a copy", dir, err)
}

// openSet opens the stores of a set, over memory each: it opens as the daemon does, with as many of
// them as there are, and goes by what they say themselves.
func (d *dump) openSet(dirs []string) (err error) {
	d.beneath = newOverlay(ioengine.OS())
	d.beneath.locks = true
	d.set, err = stripe.OpenSet(stripe.Options{Stores: dirs, AcceptStale: d.stale, FS: func(string) ioengine.FS { return d.beneath },
		Log: slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelError}))})
	if used := d.beneath.inUse(); len(used) > 0 {
		return inUse(strings.Join(used, ", "), ioengine.ErrLocked)
	}
	if errors.Is(err, stripe.ErrLost) && !d.stale {
		return fmt.Errorf("%w; with -accept-stale what is there is shown all the same", err)
	}
	if err != nil {
		return err
	}
	for _, st := range d.set.State().Stores {
		if st.Err != nil {
			fmt.Fprintf(d.log, "store %s is %s: %v\n", st.Dir, st.State, st.Err)
		}
	}
	d.dir, d.overlay = stripe.JournalRoot, newOverlay(d.set)
	return nil
}

// recognise says what is wrong with a folder that is no store.
func recognise(dir string, names []string) error {
	for _, n := range names {
		if n == "format" {
			return nil
		}
	}
	return fmt.Errorf("%s holds no file \"format\": it is no journal, or one that was never quite made", dir)
}

// open hides what is only a cache, and opens the rest.
func (d *dump) open() error {
	hide := []string{path.Join(d.dir, "catalogue")}
	groups := path.Join(d.dir, "groups")
	names, err := d.overlay.List(groups)
	if err != nil {
		return err
	}
	for _, n := range names {
		hide = append(hide, path.Join(groups, n, "index"), path.Join(groups, n, "views"))
	}
	for _, dir := range hide {
		if _, err := d.overlay.List(dir); err == nil {
			if err := d.overlay.hide(dir); err != nil {
				return err
			}
		}
	}
	d.store, err = journal.Open(journal.Config{FS: d.overlay, Dir: d.dir, Still: true, Scrub: scrub.Policy{Every: -1},
		Log:           slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelError})),
		OpenCatalogue: func() (index.Map, error) { return new(index.Memory), nil }})
	return err
}

func (d *dump) close() error {
	var err error
	if d.store != nil {
		err = d.store.Close()
	}
	if d.overlay != nil {
		err = errors.Join(err, d.overlay.close())
	}
	if d.set != nil {
		err = errors.Join(err, d.set.Close())
	}
	if d.beneath != nil {
		err = errors.Join(err, d.beneath.close())
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// group finds a group by its id or its name.
func (d *dump) group(name string) (*journal.Group, error) {
	var known []string
	for _, g := range d.store.Groups() {
		info := g.Info()
		if info.ID.String() == name || info.Name == name {
			return g, nil
		}
		known = append(known, fmt.Sprintf("%s (%s)", info.Name, info.ID))
	}
	return nil, fmt.Errorf("no group %q in %s; there are: %s", name, d.name, strings.Join(known, ", "))
}

// openLog opens a group's log by itself.
func (d *dump) openLog(id record.GroupID) (*segment.Log, error) {
	marks, err := segment.OpenWatermarks(d.overlay, d.dir, "watermark")
	if err != nil {
		return nil, err
	}
	w := marks.Get(id)
	if err := marks.Close(); err != nil {
		return nil, err
	}
	dir := path.Join(d.dir, "groups", id.String(), "log")
	return segment.Open(d.overlay, dir, id, w, segment.Options{}, nil)
}

// show prints v as JSON, or as text.
func (d *dump) show(v any, text func(w io.Writer)) error {
	if !d.json {
		text(d.out)
		return nil
	}
	e := json.NewEncoder(d.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
