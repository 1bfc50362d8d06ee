package datapath

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A source that ends, however it does, leaves its window in a file of the run directory (spill.Kept), and what it had not
// taken stands in the filters' slots. The next one goes on with both, in the same incarnation: what was sealed is
// sent as it is, slots are freed whose tickets are at or below that of the last record, and the others are taken next. So the
// stream has the writes that it would have had. It does so only where ordered capture alone carried the group, and all of
// the window is there: else it draws an incarnation, and what is marked is read again.

const keptPrefix = "window-"

// trimEvery is how often memory is given back that the window's records did not need since.
const trimEvery = time.Second

// openWindow opens the file of the group's window, and takes up what an earlier process left there, if that may be gone on
// with. Where it cannot be used, records stand in memory that ends with the process.
func (f *flow) openWindow(runDir string) {
	name := filepath.Join(runDir, keptPrefix+f.cfg.Stream.String())
	if f.mu.roster.Removed != 0 {
		spill.RemoveKept(name)
		return
	}
	c, why, err := f.slabs.Keep(spill.KeptConfig{
		Name: name, Stream: f.cfg.Stream, Group: f.cfg.ID, Lineage: f.cfg.Lineage, Page: f.tap.Page(), Boot: f.bootID, Bytes: f.cfg.Window,
	})
	if err != nil {
		f.log.Warn("the window ends with this process: what changed would be read again", "error", err)
		return
	}
	if why == "" {
		why = f.cannotGoOn(c)
	}
	if why != "" {
		f.log.Info("no window is gone on with", "reason", why)
		f.slabs.Forget(c)
		f.window.KeepIn(f.slabs.Kept(), nil)
		return
	}
	f.window.KeepIn(f.slabs.Kept(), c)
	f.kept, f.mu.inc, f.mu.freezes = c, c.Incarnation, c.Freezes
	if !invariant.Planted("datapath/acked-not-raised") {
		f.mu.ledger.Acked = max(f.mu.ledger.Acked, c.First-1) // the one before may have ended before it could say so
	}
	from, order := goesOnFrom(c.At)
	if invariant.Planted("datapath/frees-what-is-not-kept") {
		from = f.tap.LastTicket() + 1
		order = max(from, order)
	}
	f.tap.GoOn(from, order)
	f.log.Info("the window is gone on with", "records", len(c.Records), "bytes", c.Bytes, "incarnation", c.Incarnation, "seq", c.First, "ticket", c.Through)
}

// goesOnFrom says what is taken behind a window's last record: writes from the first ticket that is not whole in it, and none
// below order, which must not come after what stands in it already.
func goesOnFrom(at spill.At) (from, order record.Ticket) {
	from = at.Through + 1
	return from, max(from, at.Last)
}

// cannotGoOn says why what is left is not to be gone on with; empty: it is.
func (f *flow) cannotGoOn(c *spill.Carried) string {
	drawn, err := f.incarnations.get()
	switch {
	case err != nil:
		return err.Error()
	case c.Since == 0 && !invariant.Planted("datapath/goes-on-in-a-resync"):
		return "a resync was under way"
	case f.marksNew:
		return "the host restarted"
	case c.Incarnation != drawn.last || c.Incarnation != f.tap.Incarnation():
		return "another incarnation was drawn since"
	case c.Epoch != f.mu.epoch:
		return "another epoch was granted since"
	case f.tap.Passed() && !invariant.Planted("datapath/goes-on-over-passed"):
		return "a filter could not be reached"
	case len(f.cfg.Members) > 1:
		return "several VRAs take the group's checkpoints together"
	case f.mu.roster.Rests():
		return "the group rests"
	}
	for _, v := range f.mu.roster.Volumes {
		if v.Phase != roster.Member && v.Phase != roster.Gone {
			return "volume " + v.Name + " was being added"
		}
	}
	f.mu.drawn = drawn
	return ""
}

// goOnLocked begins with what is left of the process before, once it is known which volumes there are.
func (f *flow) goOnLocked() {
	c := f.kept
	if c == nil || f.mu.volumes == nil || f.mu.fatal != nil || f.overLocked() {
		return
	}
	f.kept = nil
	f.tap.SetLostCovered(c.Covered)
	f.mu.lacks.folded = true // when that life began
	f.mu.life = f.mu.machine.Life() + 1
	f.mu.ctx, f.mu.end = context.WithCancel(f.ctx)
	f.lives <- life{
		number: f.mu.life, ctx: f.mu.ctx, epoch: c.Epoch, incarnation: c.Incarnation, next: c.Next, ticket: c.Through, kept: c,
	}
	f.stepLocked(group.Kept{
		OpensAt: c.OpensAt, Since: c.Since, Covered: c.Covered, Lost: f.tap.Lost(), Listed: c.Listed, Initial: f.mu.ledger.Unfinished,
	})
}

// goOnWithoutLocked gives up what is left of the process before, while its volumes are not known yet: it is in the marks.
func (f *flow) goOnWithoutLocked(why string) {
	f.log.Warn("the window that was to be gone on with is given up", "reason", why)
	f.count.gaveWay.Add(1)
	f.drawLocked(group.Draw{Life: f.mu.machine.Life()})
}

// trim gives memory back, until ctx ends.
func (f *flow) trim(ctx context.Context) {
	for pause(ctx, trimEvery) {
		f.slabs.Trim()
	}
}

// leave ends the run: what the window holds is left to the next process.
func (f *flow) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.window.Leave()
	f.endLifeLocked(0)
	f.window.Reset(1)
}

// removeWindows removes what groups have left that are not here any more. Of another VRA, which may be about to start, is what was
// never drawn for here.
func (s *Source) removeWindows() error {
	names, err := filepath.Glob(filepath.Join(s.cfg.RunDir, keptPrefix+"*"))
	for _, name := range names {
		stream := strings.TrimPrefix(filepath.Base(name), keptPrefix)
		if slices.ContainsFunc(s.flows, func(f *flow) bool { return f.cfg.Stream.String() == stream }) {
			continue
		}
		if _, err := os.Stat(incarnationsName(s.cfg.DataDir, stream)); err == nil || invariant.Planted("datapath/removes-a-siblings") {
			spill.RemoveKept(name) // unless it is in use
		}
	}
	return err
}
