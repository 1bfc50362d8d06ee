package journal

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// ErrNoView says that there is no kept view of a number.
var ErrNoView = errors.New("no such view")

// keptView is a view that is written down. What changes is guarded by Group.mu.
type keptView struct {
	rec    viewRecord
	view   *view.View // nil: it is not open
	broken error      // why it did not open
}

// ViewState says how a kept view is.
type ViewState string

// The states of a view. Only what ViewClosed says is final.
const (
	ViewGood    ViewState = "good"
	ViewFull    ViewState = "full"    // a write failed because of its limit, which is still as good as reached
	ViewDamaged ViewState = "damaged" // some of it reads as an error: its checkpoint is bad, or what it has written
	ViewFailed  ViewState = "failed"  // its scratch has failed: it may be read, nothing more
	ViewBroken  ViewState = "broken"  // it does not open
	ViewClosed  ViewState = "closed"  // it gave way
)

// ViewInfo tells of a kept view.
type ViewInfo struct {
	Number       uint64 // no two views of a store ever have the same
	Checkpoint   uint64 // 0: not known, as nothing else is: its file does not read
	Options      ViewOptions
	State        ViewState
	Reason       string     // of a state that is not good
	ScratchBytes int64      // what its writes take
	Refused      uint64     // writes that failed because of the limit, since the store was opened
	View         *view.View // nil: it is not open
}

const viewSuffix = ".view"

func (g *Group) viewFile(number uint64) string {
	return path.Join(g.viewsDir(), strconv.FormatUint(number, 10)+viewSuffix)
}

// KeepView opens a view, as OpenView does, that is written down: it is there again, with
// all that was written to it, when the store is opened again, until it is closed. It is
// durable when KeepView returns.
func (g *Group) KeepView(checkpoint uint64, o ViewOptions) (ViewInfo, error) {
	if len(o.Name) > maxName || o.ScratchLimit < 0 {
		return ViewInfo{}, fmt.Errorf("journal: group %s: a view named %q with %d bytes of scratch is not valid", g.info.ID, o.Name, o.ScratchLimit)
	}
	return g.keepView(g.store.viewing.next(), checkpoint, o)
}

// keepView is KeepView for a view of that number, which was drawn.
func (g *Group) keepView(number, checkpoint uint64, o ViewOptions) (ViewInfo, error) {
	g.viewing.Lock()
	defer g.viewing.Unlock()
	k := &keptView{rec: viewRecord{life: viewOpen, scratch: o.Scratch, live: o.Live, passing: o.Passing, group: g.info.ID, number: number,
		checkpoint: checkpoint, limit: o.ScratchLimit, opened: o.Opened.UnixNano(), name: o.Name}}
	v, err := g.openView(checkpoint, o, view.Config{Number: k.rec.number, Failed: func(err error) { g.viewFails(k, err) }})
	if err != nil {
		return ViewInfo{}, err
	}
	k.view = v
	if err := g.writeView(k.rec); err != nil {
		return ViewInfo{}, errors.Join(fmt.Errorf("journal: group %s: %w", g.info.ID, err), v.Close(), g.removeView(k.rec.number))
	}
	g.mu.Lock()
	if g.views.kept == nil {
		g.views.kept = make(map[uint64]*keptView)
	}
	g.views.kept[k.rec.number] = k
	g.mu.Unlock()
	g.logged(g.forgetViews())
	return g.tellView(k), nil
}

// unreadViewLocked says that the file of a view does not read, and what to do: where it
// stands is not known, nor whether it is in use, so no checkpoint is given up before it is
// closed. Empty: there is none.
func (g *Group) unreadViewLocked() string {
	for _, n := range slices.Sorted(maps.Keys(g.views.kept)) {
		if k := g.views.kept[n]; k.rec.checkpoint == 0 {
			return fmt.Sprintf("the file of view v%d does not read, so nobody knows which checkpoint it needs, and all are kept: close it with \"holdfast view close v%d\"", n, n)
		}
	}
	return ""
}

// writeView writes a view down, durably.
func (g *Group) writeView(r viewRecord) error {
	fs, name := g.store.cfg.FS, path.Base(g.viewFile(r.number))
	if !g.views.rooted.Load() { // whoever made the folder may not have come to its sync
		if err := fs.Mkdir(g.viewsDir()); err != nil {
			return err
		}
		if invariant.Planted("journal/views-unrooted") {
			g.views.rooted.Store(true)
		}
		if err := fs.SyncDir(g.dir); err != nil {
			return err
		}
		g.views.rooted.Store(true)
	}
	return writeWhole(fs, g.viewsDir(), name+".new", name, r.encode())
}

// removeView makes sure that a view is not there after a crash.
func (g *Group) removeView(number uint64) error {
	fs := g.store.cfg.FS
	err := fs.Remove(g.viewFile(number))
	if errors.Is(err, iofs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, fs.SyncDir(g.viewsDir()))
}

// Views tells of the kept views, oldest first.
func (g *Group) Views() []ViewInfo {
	g.mu.Lock()
	var all []*keptView
	for _, n := range slices.Sorted(maps.Keys(g.views.kept)) {
		all = append(all, g.views.kept[n])
	}
	g.mu.Unlock()
	infos := make([]ViewInfo, len(all))
	for i, k := range all {
		infos[i] = g.tellView(k)
	}
	return infos
}

// tellView tells how a view is.
func (g *Group) tellView(k *keptView) ViewInfo {
	g.mu.Lock()
	r, v, broken := k.rec, k.view, k.broken
	g.mu.Unlock()
	i := ViewInfo{Number: r.number, Checkpoint: r.checkpoint, View: v, State: ViewGood,
		Options: ViewOptions{Options: view.Options{Scratch: r.scratch, ScratchLimit: r.limit}, Live: r.live, Passing: r.passing, Name: r.name, Opened: time.Unix(0, r.opened)}}
	if v != nil {
		i.ScratchBytes, i.Refused = v.ScratchBytes(), v.Refused()
	}
	if r.checkpoint == 0 { // its file does not read
		i.Options.Opened = time.Time{}
		i.State, i.Reason = ViewBroken, oneLine(broken).Error()
		return i
	}
	switch cp, err := g.Checkpoint(r.checkpoint); {
	case r.life == viewGave:
		i.State, i.Reason = ViewClosed, r.reason
	case broken != nil:
		i.State, i.Reason = ViewBroken, oneLine(broken).Error()
	case r.life == viewFailed:
		i.State, i.Reason = ViewFailed, r.reason
	case err != nil:
		i.State, i.Reason = ViewDamaged, err.Error()
	case cp.State == index.Bad:
		i.State, i.Reason = ViewDamaged, fmt.Sprintf("checkpoint %d is bad: %s", cp.Number, cp.Reason)
	case v != nil && v.Spoiled() != nil:
		i.State, i.Reason = ViewDamaged, "some of what was written to it does not read: "+oneLine(v.Spoiled()).Error()
	case i.Refused > 0 && r.limit > 0 && r.limit-i.ScratchBytes < fullBytes:
		i.State, i.Reason = ViewFull, fmt.Sprintf("%d writes failed: scratch holds %s of at most %s", i.Refused, retain.FormatSize(i.ScratchBytes), retain.FormatSize(r.limit))
	case i.Refused > 0:
		i.Reason = fmt.Sprintf("%d of its writes failed since it was opened, or the target began: for them scratch would have held more than %s", i.Refused, retain.FormatSize(r.limit))
	}
	return i
}

// fullBytes is the room below which scratch that refused a write is told to be full.
const fullBytes = 1 << 20

// CloseView ends a kept view and discards its scratch, durably. ErrNoView: there is none
// of that number; ErrInUse: a failover stands on it.
func (g *Group) CloseView(number uint64) error {
	g.viewing.Lock()
	defer g.viewing.Unlock()
	g.mu.Lock()
	k := g.views.kept[number]
	g.mu.Unlock()
	if k == nil {
		return fmt.Errorf("journal: group %s: view %d: %w", g.info.ID, number, ErrNoView)
	}
	if g.ViewInUse(number) {
		return fmt.Errorf("journal: group %s: view %d: a live failover stands on it: %w", g.info.ID, number, ErrInUse)
	}
	return errors.Join(g.endView(k, viewClosed, ""), g.forgetViews())
}

// endView writes down that the view has ended, then ends it and removes its scratch:
// what a crash leaves of that is removed when the store is opened.
func (g *Group) endView(k *keptView, life viewLife, reason string) error {
	g.mu.Lock()
	r, v := k.rec, k.view
	closed := g.closed
	g.mu.Unlock()
	if closed {
		return ErrClosed
	}
	r.life, r.reason = life, reason
	if invariant.Planted("journal/close-unwritten") {
		r.life = viewOpen
	}
	if err := g.writeView(r); err != nil {
		// On a full disk there may be no room for that. A view that is to go may be forgotten
		// instead; its number is drawn again at most after a restart.
		if err2 := g.removeView(r.number); err2 != nil {
			return errors.Join(err, err2)
		}
	}
	g.mu.Lock()
	k.rec, k.view, k.broken = r, nil, nil
	if life == viewClosed {
		delete(g.views.kept, r.number)
	}
	g.mu.Unlock()
	var err error
	if v != nil {
		err = v.Close()
	}
	return errors.Join(err, view.RemoveScratch(g.store.cfg.FS, g.scratchDir(), func(n uint64) bool { return n != r.number }))
}

// removeScratch removes what no kept view has written; there are no others yet.
func (g *Group) removeScratch() error {
	used := make(map[uint64]bool)
	for _, k := range g.views.kept {
		used[k.rec.number] = used[k.rec.number] || k.rec.life == viewOpen || k.rec.life == viewFailed
	}
	return view.RemoveScratch(g.store.cfg.FS, g.scratchDir(), func(n uint64) bool { return used[n] })
}

// viewFails writes down that a view's scratch has failed.
func (g *Group) viewFails(k *keptView, why error) {
	g.mu.Lock()
	if k.rec.life != viewOpen {
		g.mu.Unlock()
		return
	}
	k.rec.life, k.rec.reason = viewFailed, cutView(why.Error())
	r := k.rec
	g.mu.Unlock()
	g.log.Error("view takes no writes any more", "view", r.number, "error", why)
	if err := g.writeView(r); err != nil {
		g.log.Error("failure of a view is not written down", "view", r.number, "error", err)
	}
}

// maxGave is how many views that gave way are remembered.
const maxGave = 64

// forgetViews removes the files of views that are closed, and of all but the last of
// those that gave way. The highest number stays on disk: it says which was drawn last.
func (g *Group) forgetViews() error {
	names, err := g.store.cfg.FS.List(g.viewsDir())
	if err != nil {
		return err
	}
	var all []uint64
	for _, n := range names {
		if number, ok := viewNumber(n); ok {
			all = append(all, number)
		}
	}
	slices.Sort(all)
	g.mu.Lock()
	gave := 0
	var gone []uint64
	for _, n := range slices.Backward(all) {
		k := g.views.kept[n]
		if k != nil && k.rec.life == viewGave {
			gave++
		}
		if n != all[len(all)-1] && (k == nil || k.rec.life == viewGave && gave > maxGave) {
			delete(g.views.kept, n)
			gone = append(gone, n)
		}
	}
	g.mu.Unlock()
	for _, n := range gone {
		err = errors.Join(err, g.store.cfg.FS.Remove(g.viewFile(n)))
	}
	if len(gone) > 0 && err == nil {
		err = g.store.cfg.FS.SyncDir(g.viewsDir())
	}
	return err
}

// viewNumber returns the number of a view's file.
func viewNumber(name string) (uint64, bool) {
	text, ok := strings.CutSuffix(name, viewSuffix)
	n, err := strconv.ParseUint(text, 10, 64)
	return n, ok && err == nil && strconv.FormatUint(n, 10) == text
}

// noteViews makes sure that the numbers of a group's views are not drawn again, names being
// what stands in their folder.
func (g *Group) noteViews(names []string) {
	for _, name := range names {
		if n, ok := viewNumber(name); ok {
			g.store.viewing.saw(n)
		}
	}
}

// viewNames lists the folder of the group's views, which is made for the first one.
func (g *Group) viewNames() ([]string, error) {
	names, err := g.store.cfg.FS.List(g.viewsDir())
	if errors.Is(err, iofs.ErrNotExist) {
		err = nil
	}
	return names, err
}

// loadViews opens the kept views again, and removes what the others left. A view that
// does not open is there all the same, and says why; it keeps its scratch.
func (g *Group) loadViews() error {
	fs := g.store.cfg.FS
	names, err := g.viewNames()
	if err != nil {
		return err
	}
	if !invariant.Planted("journal/numbers-again") {
		g.noteViews(names)
	}
	g.views.kept = make(map[uint64]*keptView)
	for _, name := range names {
		number, ok := viewNumber(name)
		if !ok {
			if strings.HasSuffix(name, viewSuffix+".new") {
				g.logged(fs.Remove(path.Join(g.viewsDir(), name)))
			}
			continue
		}
		if k := g.loadView(number); k != nil {
			g.views.kept[number] = k
		}
	}
	if len(names) > 0 {
		g.logged(g.forgetViews())
	}
	g.logged(g.removeScratch())
	return nil
}

// logged says that something was not removed, which takes space and nothing more.
func (g *Group) logged(err error) {
	if err != nil {
		g.log.Warn("what is left of closed views is not removed", "error", err)
	}
}

// loadView opens a view again; nil: it was closed.
func (g *Group) loadView(number uint64) *keptView {
	r, err := g.readView(number)
	if err != nil {
		g.log.Error("view is not known any more", "view", number, "error", err)
		err = fmt.Errorf("its file does not read (%w): \"holdfast view close v%d\" closes it, and discards what was written to it", err, number)
		return &keptView{rec: viewRecord{life: viewOpen, number: number, live: true}, broken: err}
	}
	k := &keptView{rec: r}
	switch r.life {
	case viewClosed:
		return nil
	case viewGave:
		return k
	}
	o := ViewOptions{Options: view.Options{Scratch: r.scratch, ScratchLimit: r.limit}, Live: r.live, Passing: r.passing, Name: r.name, Opened: time.Unix(0, r.opened)}
	cfg := view.Config{Number: number, Again: true, ReadOnly: r.life == viewFailed, Failed: func(err error) { g.viewFails(k, err) }}
	if k.view, k.broken = g.openView(r.checkpoint, o, cfg); k.broken != nil {
		g.log.Error("view does not open", "view", number, "checkpoint", r.checkpoint, "error", k.broken)
	}
	return k
}

func (g *Group) readView(number uint64) (r viewRecord, err error) {
	f, err := g.store.cfg.FS.Open(g.viewFile(number), ioengine.ReadOnly)
	if err != nil {
		return r, err
	}
	defer f.Close()
	p := make([]byte, viewFileBytes+1)
	n, err := f.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return r, err
	}
	if r, err = decodeView(p[:n]); err == nil && (r.number != number || r.group != g.info.ID) {
		err = fmt.Errorf("view file of another view: %w", ErrCorrupt)
	}
	return r, err
}
