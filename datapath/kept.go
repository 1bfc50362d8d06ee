package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// kept is what a source keeps of a group over a crash of the host, in its data directory: what the ledger says, and
// which volumes were unlogged, so that their activity logs are not believed.
//
// It may be some seconds old. What was acknowledged since was written within the time for which regions
// stay in the activity logs, and is compared anyway.
type kept struct {
	Boot       string            `json:"boot"` // in which this was so
	Acked      record.Seq        `json:"acked"`
	Unfinished bool              `json:"unfinished"`
	Logged     []record.VolumeID `json:"logged"` // volumes whose activity log lacked nothing, in rising order

	news bool // of an earlier boot than this one
}

// How often it is looked whether something is to be kept, and how old the rest of it may become.
const (
	keepEvery = time.Second
	keepOld   = 10 * time.Second
)

// openKept reads what was kept, and finds out whether the host restarted since.
func (f *flow) openKept(dir string) (err error) {
	f.keptName = filepath.Join(dir, "kept-"+f.cfg.Stream.String())
	if f.bootID, err = capture.BootID(); err != nil {
		return err
	}
	text, err := os.ReadFile(f.keptName)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &f.before); err != nil {
			return fmt.Errorf("%s: %w", f.keptName, err)
		}
	}
	f.before.news = f.before.Boot != f.bootID
	f.marksNew = f.tap.Incarnation() == 0 || f.before.Boot != "" && f.before.news
	if f.marksNew && f.before.Boot != "" { // the ledger ended with the boot
		f.mu.ledger = ledger{Acked: f.before.Acked, Unfinished: f.before.Unfinished}
	}
	return nil
}

// told says whether it is known of a volume what may have changed before this boot, and that is dirty.
func (k *kept) told(id record.VolumeID, log capture.LogState) bool {
	return k.news && log.Kept && log.Told && (slices.Contains(k.Logged, id) || invariant.Planted("datapath/unlogged-believed"))
}

// wakeKeeper has what is so now be kept at once.
func (f *flow) wakeKeeper() {
	select {
	case f.keep <- struct{}{}:
	default:
	}
}

// keeper keeps what changes, at the latest after keepOld; at once where a log can be believed less than was kept.
func (f *flow) keeper(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	last, at := f.before, time.Time{}
	last.news = false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-f.keep:
		}
		k, ok := f.toKeep(last)
		if !ok || k.same(last) || time.Since(at) < keepOld && !k.less(last) {
			continue
		}
		if err := f.putKept(k); err != nil {
			f.log.Warn("what a restart of the host is to find cannot be kept", "error", err)
			continue
		}
		last, at = k, time.Now()
	}
}

func (f *flow) putKept(k kept) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return writeDurably(f.keptName, append(text, '\n'))
}

// toKeep is what is so now; false before all that an earlier boot left is marked. Of a volume whose filter is
// away what was kept last stays: nobody writes to it.
func (f *flow) toKeep(last kept) (k kept, ok bool) {
	logs := f.tap.Logs()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.marksNew || f.mu.volumes == nil || f.mu.ledger == (ledger{}) {
		return k, false
	}
	k = kept{Boot: f.bootID, Acked: f.mu.ledger.Acked, Unfinished: f.mu.ledger.Unfinished, Logged: []record.VolumeID{}}
	for _, v := range f.mu.volumes {
		if l, connected := logs[v.ID]; l.Whole() || !connected && slices.Contains(last.Logged, v.ID) {
			k.Logged = append(k.Logged, v.ID)
		}
	}
	slices.Sort(k.Logged)
	return k, true
}

func (k kept) same(as kept) bool {
	return k.Boot == as.Boot && k.Acked == as.Acked && k.Unfinished == as.Unfinished && slices.Equal(k.Logged, as.Logged)
}

// less says that what was kept last would have too much believed.
func (k kept) less(as kept) bool {
	return k.Boot != as.Boot || k.Unfinished != as.Unfinished ||
		slices.ContainsFunc(as.Logged, func(id record.VolumeID) bool { return !slices.Contains(k.Logged, id) })
}

// unlogged are the names of the volumes of which a crash of the host would not leave it known what changed, though
// their filters keep a log; and how many others have none.
func (f *flow) unloggedLocked() (names []string, none int) {
	logs := f.tap.Logs()
	for _, v := range f.mu.volumes {
		switch l, connected := logs[v.ID]; {
		case connected && l.Kept && l.Lacks:
			names = append(names, v.Name)
		case connected && !l.Kept:
			none++
		}
	}
	return names, none
}
