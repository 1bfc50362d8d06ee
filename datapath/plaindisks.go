package datapath

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A machine on vhost-user has no node of its disk that could be changed within QEMU: its device is here. So when the view of a failover ends that
// passes all to its disks, what serves it goes on, at the same socket, with the disk itself: by the queue's own loop, as a filter does.
//
// What is served where is what the manifest says: the view until it states that the disks are the machines' (failover.OnDisks), and the disks from then on. The view is
// not written to by then, as the queues are held, and all that it was given is on the disks, durably; the disks are not before. So a kill at any place leaves
// one of the two to who comes after it, and both are the same bytes.
//
// A disk is had, by locks, while a machine is connected there, and let go when that has left: the next time the machine opens it by itself, or a
// filter does, of a new group. While one of those has it the socket refuses who comes.

// plainOf opens a disk of a group for each front end that comes, unless the group is being removed: who is connected by then is seen by who removes it.
func (vs *views) plainOf(g *journal.Group, d journal.Disk) vhostuser.Open {
	return func() (vhostuser.Opened, error) {
		if err := g.Stays(); err != nil {
			return nil, err
		}
		p, err := vs.openPlain(g, d)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
}

func (vs *views) openPlain(g *journal.Group, d journal.Disk) (*capture.Plain, error) {
	return capture.OpenPlain(vs.fs, d.Path, d.Bytes, g.HoldsDisk(d.ID))
}

// moveOn ends the view that is served under the number, by do, which states so for good, and has the machines that are connected there over vhost-user go on with the
// group's disks. Where one of those is not to be had, nothing is begun; what fails later leaves them on the view.
func (vs *views) moveOn(g *journal.Group, number uint64, do func() error) error {
	vs.opening.Lock()
	defer vs.opening.Unlock()
	vs.mu.Lock()
	s, moving := vs.mu.served[number], vs.mu.moving
	vs.mu.Unlock()
	var m *mover
	if s != nil {
		m = vs.newMover(g, s)
		if err := m.ready(); err != nil && !invariant.Planted("datapath/sees-locks-late") {
			return errors.Join(err, m.giveBack())
		}
	}
	vs.mu.Lock()
	vs.mu.withheld[number] = true
	if s != nil {
		s.view = nil
	}
	vs.mu.Unlock()
	if s == nil {
		err := do()
		vs.lend(number)
		return err
	}
	s.endUsers()
	s.stopNBD()
	<-s.doneNBD
	from := time.Now()
	goOn, err := m.hold()
	if err == nil {
		moving("held")
		err = do()
	}
	moving("stated")
	for i, resume := range goOn {
		if err != nil {
			resume(nil)
		} else {
			resume(m.opens(i))
		}
	}
	held := time.Since(from)
	if gerr := m.giveBack(); gerr != nil {
		vs.log.Warn("a disk that no machine went on with is not closed in order", "group", g.Info().Name, "error", gerr)
	}
	vs.lend(number)
	if err != nil {
		vs.unserve(number) // who was connected comes again
		return err
	}
	if s.users != nil {
		if err := os.RemoveAll(s.users.path); err != nil { // as for a view that is closed, it is tried again
			vs.log.Error("who used the view stays written down", "view", viewID(number), "error", err)
		}
	}
	moving("moved")
	vs.log.Info("machines go on with plain disks", "group", g.Info().Name, "view", viewID(number), "disks", len(goOn), "held", held)
	return nil
}

// lend lets a view be served that was withheld.
func (vs *views) lend(number uint64) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	delete(vs.mu.withheld, number)
}

// mover has the machines that are connected to a view over vhost-user go on with the disks beneath it.
type mover struct {
	vs    *views
	g     *journal.Group
	s     *servedView
	disks []journal.Disk // beneath s.shared, in its order

	mu struct {
		sync.Mutex
		had []*capture.Plain // the disks, from when nobody else is to have them until a machine goes on with them; nil: not had
	}
}

func (vs *views) newMover(g *journal.Group, s *servedView) *mover {
	m := &mover{vs: vs, g: g, s: s, disks: make([]journal.Disk, len(s.shared))}
	m.mu.had = make([]*capture.Plain, len(s.shared))
	return m
}

// ready takes the disks of those who are connected from everybody else, and makes durable what these have written: what is left of that while they are held is short.
func (m *mover) ready() (err error) {
	all := make(map[record.VolumeID]journal.Disk)
	for _, d := range m.g.Disks() {
		all[d.ID] = d
	}
	for i, d := range m.s.shared {
		disk, ok := all[d.volume]
		if size := d.server.Device.Size(); !ok || disk.Bytes != size {
			err = errors.Join(err, fmt.Errorf("volume %d: its disk has %d bytes, and the machine's %d", d.volume, disk.Bytes, size))
			continue
		}
		m.disks[i] = disk
		if d.server.Connected() {
			err = errors.Join(err, m.take(i))
		}
	}
	for _, d := range m.s.shared {
		if err == nil && d.server.Connected() {
			err = d.server.Device.Flush()
		}
	}
	return err
}

// take has a disk from now on, if it is not had.
func (m *mover) take(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.had[i] != nil {
		return nil
	}
	p, err := m.vs.openPlain(m.g, m.disks[i])
	if err == nil {
		m.mu.had[i] = p
	}
	return err
}

// hold holds all vhost-user-blk devices of the view, at once, and makes what they were given durable. They go on by the functions, whatever the error.
func (m *mover) hold() (goOn []func(vhostuser.Open), err error) {
	goOn = make([]func(vhostuser.Open), len(m.s.shared))
	errs := make([]error, len(m.s.shared))
	var wg sync.WaitGroup
	for i, d := range m.s.shared {
		wg.Go(func() {
			goOn[i] = d.server.Hold()
			if d.server.Connected() { // since a moment ago, it may be
				errs[i] = errors.Join(m.take(i), d.server.Device.Flush())
			}
		})
	}
	wg.Wait()
	return goOn, errors.Join(errs...)
}

// opens opens a disk for each front end that comes: for the first one what was had for it.
func (m *mover) opens(i int) vhostuser.Open {
	again := m.vs.plainOf(m.g, m.disks[i])
	return func() (vhostuser.Opened, error) {
		m.mu.Lock()
		had := m.mu.had[i]
		m.mu.had[i] = nil
		m.mu.Unlock()
		if had != nil {
			return had, nil
		}
		return again()
	}
}

// giveBack closes what nobody went on with.
func (m *mover) giveBack() (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range m.mu.had {
		if p != nil {
			m.mu.had[i], err = nil, errors.Join(err, p.Close())
		}
	}
	return err
}

// servePlain serves the disks of groups whose machines have moved onto them, and no more those of groups that are gone. opening is held.
func (vs *views) servePlain() {
	there := make(map[uint64]bool)
	for _, g := range vs.store.Groups() {
		f := g.Failover()
		if f.State != failover.OnDisks {
			continue
		}
		number := f.Failover.View
		there[number] = true
		if vs.serves(number) {
			continue
		}
		s := &servedView{}
		for _, d := range g.Disks() {
			server := &vhostuser.Server{Name: d.Name, Log: vs.log.With("group", g.Info().Name, "volume", d.Name)}
			server.OpenEach(vs.plainOf(g, d))
			s.shared = append(s.shared, vhostDisk{server, d.ID, diskSocket(vs.socket(number), d.ID)})
		}
		if err := vs.listenAll(number, s); err != nil && !errors.Is(err, errWithheld) {
			vs.log.Error("disks are not served", "group", g.Info().Name, "error", err)
		}
	}
	vs.mu.Lock()
	var gone []uint64
	for number, s := range vs.mu.served {
		if s.view == nil && !there[number] {
			gone = append(gone, number)
		}
	}
	vs.mu.Unlock()
	for _, number := range gone {
		vs.unserve(number)
	}
}

func (vs *views) serves(number uint64) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.mu.served[number] != nil
}

// onPlain is how many machines run on the disks of a group that has let them go, by what is served here. waits: one that was connected before may be on its way
// back, as they are served for less than returnWait, or not yet.
func (vs *views) onPlain(g *journal.Group) (shared int, waits bool) {
	f := g.Failover()
	if f.State != failover.OnDisks {
		return 0, false
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	s := vs.mu.served[f.Failover.View]
	if s == nil {
		return 0, true
	}
	_, shared = s.clients()
	return shared, vs.mu.now().Sub(s.began) < returnWait
}
