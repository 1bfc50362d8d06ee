package capture

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// FilterConfig says what a filter serves.
type FilterConfig struct {
	RunDir     string // memory-backed folder, shared with the VRA: order page and marks
	Group      record.GroupID
	PoolBytes  int64  // slots for all volumes together; at least 1 MiB
	PoolSocket string // unix socket on which the VRA maps the pool and asks
	Volumes    []FilterVolume
	FS         ioengine.FS // where the guest's disks are
	Log        *slog.Logger
	Dial       DialSource // where there are mirror targets

	idleSeconds uint32        // of a region of the activity log; 0: as long as activity says
	growWait    time.Duration // 0: growWait
}

// FilterVolume is a disk to serve.
type FilterVolume struct {
	ID   record.VolumeID
	Name string
	Path string // on FilterConfig.FS
	Log  string // its activity log, on the same; empty for none
	// Writeback has it written and read through the page cache: a write is answered that stands there, and a flush makes it durable.
	Writeback bool
	// Mirror, above 0, makes it a mirror target of so many bytes: its guest keeps its own way to its disk, which is none of
	// ours (no Path, no Log), and QEMU mirrors what the guest writes.
	Mirror int64
}

func (c *FilterConfig) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.RunDir == "" || c.PoolSocket == "" || c.FS == nil || c.Log == nil {
		fail("run directory, pool socket, file system and logger are needed")
	}
	if c.Group == 0 {
		fail("group is 0")
	}
	if c.PoolBytes < minSlots*SlotBytes || c.PoolBytes > maxSlots*SlotBytes {
		fail("pool of %d bytes, want %d to %d", c.PoolBytes, minSlots*SlotBytes, int64(maxSlots)*SlotBytes)
	}
	if len(c.Volumes) < 1 || len(c.Volumes) > maxRings {
		fail("%d volumes, want 1 to %d", len(c.Volumes), maxRings)
	}
	ids, names := map[record.VolumeID]bool{}, map[string]bool{}
	for _, v := range c.Volumes {
		if v.ID == 0 || v.Name == "" || len(v.Name) > 255 || ids[v.ID] || names[v.Name] {
			fail("volume %d %q: id and name must be given, and once only", v.ID, v.Name)
		}
		if v.Mirror > 0 && c.Dial == nil {
			fail("volume %s: a mirror target, and no way to read its guest's disk", v.Name)
		}
		if v.Mirror < 0 || v.Mirror%512 != 0 || v.Mirror > record.VolumeLimit || v.Mirror > 0 && (v.Log != "" || v.Writeback) {
			fail("volume %s: a mirror target of %d bytes, want a multiple of 512, no activity log and no cache", v.Name, v.Mirror)
		}
		ids[v.ID], names[v.Name] = true, true
	}
	return errors.Join(errs...)
}

// Filter splits the writes of its volumes.
type Filter struct {
	cfg     FilterConfig
	key     uint64
	lock    *os.File
	page    *orderPage
	pool    *pool
	volumes []*volume // in the order of their rings
	growths sync.WaitGroup

	// tap is the VRA that is attached.
	tap struct {
		sync.Mutex
		end    context.CancelFunc // ends its connection; nil when there is none
		ended  chan struct{}
		wakeFD int // its eventfd; -1 for none
	}
}

// turnEvery is how long a generation collects marks.
const turnEvery = time.Second

// OpenFilter opens the disks and the marks. It waits for a predecessor that still
// has writes in flight; after one that was killed, all live generations are moved to
// the dirty maps and lost is added to before it returns.
func OpenFilter(cfg FilterConfig) (*Filter, error) {
	boot, err := thisBoot()
	if err != nil {
		return nil, err
	}
	return openFilter(cfg, boot)
}

func openFilter(cfg FilterConfig, boot bootID) (_ *Filter, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f := &Filter{cfg: cfg, key: filterKey(cfg.PoolSocket)}
	f.tap.wakeFD = -1
	defer func() {
		if err != nil {
			f.abandon()
		}
	}()
	name := filterLockName(cfg.RunDir, cfg.Group, f.key)
	f.lock, err = wait.Lock(succeedWait, func() (*os.File, error) { return tryLockFile(name) }, ErrInUse)
	if err != nil {
		return nil, err
	}
	if f.page, err = openPage(cfg.RunDir, cfg.Group, boot); err != nil {
		return nil, err
	}
	clock := newMonoClock()
	instance, err := newInstance()
	if err != nil {
		return nil, err
	}
	f.pool, err = newPool(int(cfg.PoolBytes/SlotBytes), len(cfg.Volumes), instance, f.page, clock)
	if err != nil {
		return nil, err
	}
	for i, fv := range cfg.Volumes {
		v, err := openVolume(cfg, fv, boot, f.page)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", fv.Name, err)
		}
		v.pool, v.ring, v.clock, v.wake = f.pool, &f.pool.rings[i], clock, f.wake
		v.showLog(word(f.pool.desc, descAtLogs+8*int64(i)))
		v.sizeWord = word(f.pool.desc, descAtSizes+8*int64(i))
		v.sizeWord.Store(uint64(v.disk.size.Load()))
		v.useWord = word(f.pool.desc, descAtUses+8*int64(i))
		v.useWord.Store(1)
		f.volumes = append(f.volumes, v)
	}
	if err := f.page.enter(f.key, instance); err != nil { // before the first ticket
		return nil, err
	}
	return f, nil
}

func newInstance() (uint64, error) {
	var p [8]byte
	if _, err := rand.Read(p[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(p[:]) | 1, nil
}

// Device returns the disk of the volume of that name, nil if there is none. It may be
// used until Close, whether or not Run runs.
func (f *Filter) Device(name string) front.Device {
	for _, v := range f.volumes {
		if v.name == name {
			return v
		}
	}
	return nil
}

func (f *Filter) volume(id record.VolumeID) *volume {
	for _, v := range f.volumes {
		if v.id == id {
			return v
		}
	}
	return nil
}

// Run serves the pool socket and closes a generation each second, until ctx ends.
func (f *Filter) Run(ctx context.Context) error {
	listener, err := listenPool(f.cfg.PoolSocket)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	run, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { // Close comes once Run has returned
		<-run.Done()
		listener.Close()
		for _, v := range f.volumes { // a QEMU that does not answer holds up nobody who waits for its reads
			if v.mirror != nil {
				v.mirror.file.Close()
			}
		}
	})
	wg.Go(func() {
		tick := time.NewTicker(turnEvery)
		defer tick.Stop()
		for {
			select {
			case <-run.Done():
				return
			case <-tick.C:
				f.turn()
			}
		}
	})
	for _, v := range f.volumes { // a disk that hangs holds up its own alone
		wg.Go(func() { v.keepLog(run) })
	}
	return f.accept(run, listener, &wg)
}

// turn closes the current generations.
func (f *Filter) turn() {
	for _, v := range f.volumes {
		v.tickLog()
		v.turn(record.Ticket(f.page.durable.Load()))
		v.look()
	}
}

// wake wakes the VRA if it sleeps. The eventfd does not block: at worst it is full, and so woken.
func (f *Filter) wake() {
	if !f.page.sleeping.CompareAndSwap(1, 0) {
		return
	}
	f.tap.Lock()
	defer f.tap.Unlock()
	if f.tap.wakeFD >= 0 {
		_, _ = unix.Write(f.tap.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// Settle makes durable what stands in the page cache of disks that are cached; it takes as long as they do. Called before the fronts stop it
// leaves Close little to wait for.
func (f *Filter) Settle() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, v := range f.volumes {
		if !v.disk.cached || invariant.Planted("capture/unsettled") {
			continue
		}
		wg.Go(func() {
			if err := v.sync(); err != nil {
				v.log.Error("the disk was not synced", "error", err)
				return
			}
			v.log.Info("what the page cache had is on the disk")
		})
	}
}

// takenWait is how long Close gives the VRA to take what is published.
const takenWait = time.Second

// Close waits for writes in flight, gives the VRA a moment to take what is published,
// notes that the marks are whole and takes the filter out of the order page. Fronts
// must have stopped, and Run have returned. A disk that does not answer holds it up.
func (f *Filter) Close() error {
	f.growths.Wait()
	for _, v := range f.volumes {
		v.active.Wait()
	}
	taken := f.waitTaken(takenWait)
	if !taken {
		f.cfg.Log.Info("not all that is published was taken: what is marked is dirty")
	}
	for _, v := range f.volumes {
		v.close(taken)
	}
	f.volumes = nil
	f.page.leave(f.key)
	f.abandon()
	return nil
}

// waitTaken waits until the VRA, if there is one, has freed every slot.
func (f *Filter) waitTaken(most time.Duration) bool {
	tap := tapLockName(f.cfg.RunDir, f.cfg.Group)
	for deadline := time.Now().Add(most); !f.pool.allHome(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || !lives(tap) {
			return false
		}
		f.wake()
	}
	return true
}

// abandon lets go of everything as a kill would: nothing is noted anywhere.
func (f *Filter) abandon() {
	for _, v := range f.volumes {
		v.closeFiles()
	}
	f.tap.Lock()
	if f.tap.wakeFD >= 0 {
		unix.Close(f.tap.wakeFD)
		f.tap.wakeFD = -1
	}
	f.tap.Unlock()
	if f.pool != nil {
		f.pool.close()
	}
	if f.page != nil {
		f.page.close()
	}
	if f.lock != nil {
		f.lock.Close()
	}
}
