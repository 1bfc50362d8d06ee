package journal

import (
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sharedRound makes one commit round that holds a record of each of three groups, by
// having them come while the sync of the round before is held up. In it the first so
// many syncs of log files fail. It returns the disk after a loss of power at the moment
// when the last of the three was told, and what each was told.
func sharedRound(t *testing.T, failing int) (crashed *faultdisk.Disk, sources []*source, ps []promise) {
	t.Helper()
	disk := faultdisk.New(512)
	w, err := openSeveral(disk, 3)
	ok(t, err)
	for i := range w.targets {
		s := newSource(60 + i)
		s.open(true)
		s.close()
		sources = append(sources, s)
		ok(t, w.targets[i].feed(s, 2))
		s.write(1)
	}
	sources[0].write(1)

	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	isLog := func(name string) bool { return strings.Contains(name, "/log/") }
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Stall: release, Only: func(name string) bool {
		if isLog(name) {
			once.Do(func() { close(entered) })
		}
		return isLog(name)
	}})
	before := make(chan error, 1)
	ok(t, w.targets[0].group.Append(sources[0].records[2], func(err error) { before <- err }))
	<-entered
	var mu sync.Mutex
	told, done := 0, make(chan struct{})
	ps = make([]promise, 3)
	for i, s := range sources {
		r := s.records[len(s.records)-1]
		ok(t, w.targets[i].group.Append(r, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ps[i].acked = r.Seq
			}
			if told++; told == 3 {
				crashed = disk.Crash(seeded(1), faultdisk.KeepNone)
				close(done)
			}
		}))
	}
	for n := range failing {
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Only: isLog, At: n + 1, Err: syscall.EIO})
	}
	close(release)
	ok(t, <-before)
	<-done
	disk.Heal()
	ok(t, w.store.Close())
	return crashed, sources, ps
}

// What one sync makes durable for several groups is durable for each of them when it is told.
func TestSharedRound(t *testing.T) {
	crashed, sources, ps := sharedRound(t, 0)
	for i, p := range ps {
		if p.acked != record.Seq(len(sources[i].records)) {
			t.Errorf("group %d was told of %d records of %d", i, p.acked, len(sources[i].records))
		}
	}
	ok(t, keptBy(crashed, sources, ps))
}

// When the sync fails nobody is told anything yet: each part is written again with a
// sync of its own, and where that fails too its group alone is refused.
func TestFailedSharedRound(t *testing.T) {
	for failing := 1; failing <= 4; failing++ {
		crashed, sources, ps := sharedRound(t, failing)
		told := 0
		for i, p := range ps {
			if p.acked == record.Seq(len(sources[i].records)) {
				told++
			}
		}
		if err := keptBy(crashed, sources, ps); err != nil {
			t.Fatalf("%d syncs fail: %v", failing, err)
		}
		if failing == 1 && told != 3 {
			t.Errorf("one sync failed, and %d groups of 3 have what was written again", told)
		}
	}
}
