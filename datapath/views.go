package datapath

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// maxViews bounds the views open at once. Each has a socket and a goroutine, and for
// each disk that was written to two files; each of its clients, of which there are at
// most 64, has a connection, at most 17 goroutines, and one for
// each write under way, of which there are at most 128. One that takes writes has a socket and a goroutine for each disk more, and
// while a machine is connected there what datapath/front/vhostuser/limits.go says.
const maxViews = 256

// views are the images that a target shows. Each has one unix socket of its own in
// the run directory, on which every volume is an export under its name over NBD, and
// one that takes writes another for each volume, where it is a vhost-user-blk device. The journal
// keeps them: after a restart the same are served at the same sockets.
type views struct {
	dir   string
	boot  [16]byte
	log   *slog.Logger
	fs    ioengine.FS // in which the disks of groups are, where they are plain ones
	store *journal.Store

	usersDir string // files of users

	opening sync.Mutex // one view is opened or closed at a time; before mu

	mu struct {
		sync.Mutex
		served   map[uint64]*servedView
		withheld map[uint64]bool // are not served, whoever asks
		closed   bool
		now      func() time.Time
		moving   func(step string) // told of each step of a move onto plain disks
	}
}

// servedView is a view that clients can reach; or what was one, whose machines have moved onto the disks beneath it, and are served those as
// vhost-user-blk devices.
type servedView struct {
	view   *view.View                            // nil: machines have moved; under mu
	server *nbd.Server                           // nil: over vhost-user alone
	users  *users                                // over NBD, of one that takes writes; else nil
	shared []vhostDisk                           // of one that takes writes: for machines that share their memory
	disks  map[record.VolumeID]*vhostuser.Server // of those, that can be reached, under mu
	stop   context.CancelFunc
	done   chan struct{}
	began  time.Time // to be served
	used   time.Time // when it last was seen to have a client, or began to be served; under mu

	stopNBD context.CancelFunc
	doneNBD chan struct{}
}

// returnWait is how long a view that takes writes counts as in use from when it is served: a QEMU on vhost-user asks each second whether a socket is back that went
// away under it, as in a restart of this process, and its machine runs on meanwhile. One on NBD asks when it reads or writes next: see users.
const returnWait = 5 * time.Second

// passingWait is how long a passing view is there without a client.
const passingWait = 30 * time.Second

// viewStatus is a view as it is told.
type viewStatus struct {
	journal.ViewInfo
	group   string
	socket  string // empty: it is not served
	clients int
	shared  int                      // of those, over vhost-user
	waits   bool                     // who was connected when it was served last may be on his way back
	away    []int                    // processes that were, over NBD, and come back when they read or write
	vhost   map[record.VolumeID]bool // volumes with a vhost-user-blk device
}

// Refusals of opening and closing.
var (
	errTooMany = fmt.Errorf("%d views are open", maxViews)
	errNoView  = errors.New("no such view")

	errWithheld = errors.New("the view is being handed over")
)

// newViews serves the views that the journal kept.
func newViews(runDir string, fs ioengine.FS, store *journal.Store, log *slog.Logger) (*views, error) {
	v := &views{dir: filepath.Join(runDir, "views"), usersDir: filepath.Join(runDir, "users"), boot: thisBoot(), log: log, fs: fs, store: store}
	v.mu.now, v.mu.moving = time.Now, func(string) {}
	v.mu.served = make(map[uint64]*servedView)
	v.mu.withheld = make(map[uint64]bool)
	if err := errors.Join(os.MkdirAll(v.dir, 0o700), os.MkdirAll(v.usersDir, 0o700)); err != nil {
		return nil, err
	}
	if err := v.removeDead(); err != nil {
		return nil, err
	}
	v.serveKept()
	return v, nil
}

// removeDead removes the sockets of a process that is gone, and not those at which somebody answers: a filter may serve there what
// was a view.
func (vs *views) removeDead() error {
	all, err := os.ReadDir(vs.dir)
	for _, e := range all {
		name := filepath.Join(vs.dir, e.Name())
		if c, derr := net.Dial("unix", name); derr == nil && !invariant.Planted("datapath/removes-living") {
			c.Close()
			continue
		}
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

// withhold ends the serving of a view, or lets it be served again.
func (vs *views) withhold(number uint64, yes bool) {
	vs.mu.Lock()
	vs.mu.withheld[number] = yes
	vs.mu.Unlock()
	if yes {
		vs.unserve(number)
	}
}

// serveKept serves what the journal has open and is not served: what it kept, and what
// is in a group that was opened again. What cannot be served is tried again.
func (vs *views) serveKept() {
	vs.opening.Lock()
	defer vs.opening.Unlock()
	open := make(map[uint64]bool)
	for _, v := range vs.list("") {
		open[v.Number] = true
		if v.View == nil || v.socket != "" {
			continue
		}
		if err := vs.serve(v); err != nil {
			vs.log.Error("view is not served", "view", viewID(v.Number), "error", err)
		}
	}
	shut := func(g *journal.Group) bool { return !g.Opens() && g.Failover().State != failover.OnDisks } // it may have views
	if !slices.ContainsFunc(vs.store.Groups(), shut) {
		if err := vs.forgetUsers(func(number uint64) bool { return open[number] }); err != nil {
			vs.log.Error("who used a view that is closed stays written down", "error", err)
		}
	}
	vs.servePlain()
}

// serveOne serves a view of the group that is kept, unless it is served.
func (vs *views) serveOne(g *journal.Group, number uint64) error {
	vs.opening.Lock()
	defer vs.opening.Unlock()
	for _, v := range vs.list(g.Info().Name) {
		if v.Number == number && v.View != nil && v.socket == "" {
			return vs.serve(v)
		}
	}
	return nil
}

// vhostDisk is a volume of a view as a vhost-user-blk device.
type vhostDisk struct {
	server *vhostuser.Server
	volume record.VolumeID
	socket string
}

// viewID is how users name a view.
func viewID(number uint64) string { return "v" + strconv.FormatUint(number, 10) }

func (vs *views) socket(number uint64) string { return filepath.Join(vs.dir, viewID(number)) }

// diskSocket is where a volume of the view at a socket is a vhost-user-blk device.
func diskSocket(view string, volume record.VolumeID) string {
	return view + "-" + strconv.FormatUint(uint64(volume), 10)
}

// clients is how many connections a view has, and how many of those are over vhost-user.
func (s *servedView) clients() (all, shared int) {
	for _, d := range s.disks {
		if d.Connected() && !invariant.Planted("datapath/vhost-users-uncounted") {
			shared++
		}
	}
	if s.server == nil {
		return shared, shared
	}
	return s.server.Clients() + shared, shared
}

// show opens a view, which is kept, and serves it.
func (vs *views) show(g *journal.Group, checkpoint uint64, o journal.ViewOptions) (viewStatus, error) {
	vs.opening.Lock()
	defer vs.opening.Unlock()
	if vs.count() >= maxViews {
		return viewStatus{}, errTooMany
	}
	info, err := g.KeepView(checkpoint, o)
	if err != nil {
		return viewStatus{}, err
	}
	v := viewStatus{ViewInfo: info, group: g.Info().Name}
	if err := vs.serve(v); err != nil {
		return viewStatus{}, errors.Join(err, g.CloseView(info.Number))
	}
	vs.find(&v)
	vs.log.Info("view opened", "view", viewID(info.Number), "group", v.group, "checkpoint", checkpoint)
	return v, nil
}

func (vs *views) count() int {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	n := 0
	for _, s := range vs.mu.served {
		if s.view != nil {
			n++
		}
	}
	return n
}

// serve listens on the view's sockets.
func (vs *views) serve(v viewStatus) error {
	id, at := viewID(v.Number), vs.socket(v.Number)
	s := &servedView{view: v.View, server: &nbd.Server{Log: vs.log.With("view", id)}}
	if v.Options.Scratch {
		s.users = openUsers(vs.usersPath(v.Number), vs.boot, vs.log.With("view", id))
	}
	for _, volume := range v.View.Volumes() {
		d, ok := v.View.Device(volume.ID)
		if !ok {
			return fmt.Errorf("volume %s is not in the view", volume.Name)
		}
		about := fmt.Sprintf("%s of group %s at checkpoint %d", volume.Name, v.group, v.Checkpoint)
		var device front.Device = viewDevice{d}
		if s.users != nil {
			device = usedDevice{viewDevice{d}, s.users, volume.Name}
		}
		if err := s.server.Add(nbd.Export{Name: volume.Name, Device: device, Description: about}); err != nil {
			return err
		}
		if v.Options.Scratch {
			server := &vhostuser.Server{Device: viewDevice{d}, Name: volume.Name, Log: vs.log.With("view", id, "volume", volume.Name)}
			s.shared = append(s.shared, vhostDisk{server, volume.ID, diskSocket(at, volume.ID)})
		}
	}
	if err := vs.listenAll(v.Number, s); err != nil {
		return err
	}
	go func() { // one that gave way ends here
		select {
		case <-v.View.Ended():
			if vs.shows(v.Number, s) {
				vs.unserve(v.Number)
			}
		case <-s.done:
		}
	}()
	return nil
}

// shows says whether what is served is a view still.
func (vs *views) shows(number uint64, s *servedView) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.mu.served[number] == s && s.view != nil
}

// listenAll begins to serve s, at its sockets.
func (vs *views) listenAll(number uint64, s *servedView) error {
	s.disks, s.done, s.doneNBD = make(map[record.VolumeID]*vhostuser.Server), make(chan struct{}), make(chan struct{})
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.mu.closed {
		return net.ErrClosed
	}
	if vs.mu.withheld[number] {
		return errWithheld
	}
	var listener *net.UnixListener
	if s.server != nil {
		var err error
		if listener, err = listen(vs.socket(number)); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	forNBD, stopNBD := context.WithCancel(ctx)
	s.stop, s.stopNBD, s.began = stop, stopNBD, vs.mu.now()
	s.used = s.began
	vs.mu.served[number] = s
	var serving sync.WaitGroup
	serve := func(do func() error) {
		serving.Go(func() {
			if err := do(); err != nil {
				vs.log.Error("view is not served any more", "view", viewID(number), "error", err)
			}
		})
	}
	serve(func() error {
		defer close(s.doneNBD)
		if listener == nil {
			return nil
		}
		return s.server.Serve(forNBD, listener)
	})
	for _, d := range s.shared {
		l, err := listen(d.socket)
		if err == nil {
			s.disks[d.volume] = d.server
		} else {
			d.server.Log.Error("the volume's vhost-user socket cannot be had yet, and it is not served there", "error", err)
		}
		serve(func() error {
			if l == nil {
				l = vs.listenLater(ctx, s, d)
			}
			if l == nil {
				return nil
			}
			return d.server.Serve(ctx, l)
		})
	}
	go func() {
		defer close(s.done)
		serving.Wait()
	}()
	return nil
}

// listenEvery is how often a socket that cannot be had is tried again.
const listenEvery = time.Second

// listenLater waits until the socket of a vhost-user-blk device can be had; nil: ctx ended. One that cannot takes neither the others nor NBD from the
// machines that run on them.
func (vs *views) listenLater(ctx context.Context, s *servedView, d vhostDisk) *net.UnixListener {
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if l, err := listen(d.socket); err == nil {
			d.server.Log.Info("the volume is served at its vhost-user socket")
			vs.mu.Lock()
			defer vs.mu.Unlock()
			s.disks[d.volume] = d.server
			return l
		}
	}
}

// listen listens at a unix socket, for nobody but this user.
func listen(name string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// unserve ends the serving of a view: what its clients asked for is answered first.
func (vs *views) unserve(number uint64) {
	vs.mu.Lock()
	s := vs.mu.served[number]
	delete(vs.mu.served, number)
	vs.mu.Unlock()
	if s == nil {
		return
	}
	s.endUsers()
	s.stop()
	<-s.done
}

// endUsers says that who is connected over NBD does not leave.
func (s *servedView) endUsers() {
	if s.users != nil {
		s.users.end()
	}
}

// uri is where a volume of the view is found.
func (v *viewStatus) uri(volume string) string {
	return nbd.URI{Network: "unix", Address: v.socket, Export: volume}.String()
}

// find tells where a view is served, if it is, and who is connected there.
func (vs *views) find(v *viewStatus) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	s := vs.mu.served[v.Number]
	if s == nil || s.view != v.View {
		return
	}
	v.socket = vs.socket(v.Number)
	v.clients, v.shared = s.clients()
	v.waits = v.Options.Scratch && vs.mu.now().Sub(s.began) < returnWait
	if s.users != nil {
		v.away = s.users.missing()
	}
	v.vhost = make(map[record.VolumeID]bool, len(s.disks))
	for volume := range s.disks {
		v.vhost[volume] = true
	}
}

// list returns the views of a group, of all for the empty name, oldest first.
func (vs *views) list(group string) (all []viewStatus) {
	for _, g := range vs.store.Groups() {
		name := g.Info().Name
		if group != "" && group != name {
			continue
		}
		for _, info := range g.Views() {
			v := viewStatus{ViewInfo: info, group: name}
			vs.find(&v)
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b viewStatus) int { return int(int64(a.Number) - int64(b.Number)) })
	return all
}

// close ends a view and drops its scratch.
func (vs *views) close(id string) error {
	vs.opening.Lock()
	defer vs.opening.Unlock()
	for _, g := range vs.store.Groups() {
		for _, info := range g.Views() {
			if viewID(info.Number) != id {
				continue
			}
			if g.ViewInUse(info.Number) {
				return fmt.Errorf("a live failover stands on view v%d: %w", info.Number, journal.ErrInUse)
			}
			vs.unserve(info.Number)
			err := g.CloseView(info.Number)
			vs.log.Info("view closed", "view", id, "error", err)
			return err
		}
	}
	return errNoView
}

// run serves views of groups that come later, until ctx ends; then none is served. They
// stay in the journal.
func (vs *views) run(ctx context.Context) {
	defer vs.stop()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			vs.serveKept()
			vs.closePassed(now)
		}
	}
}

// closePassed closes the passing views whose users are gone: one that was killed closes
// nothing itself.
func (vs *views) closePassed(now time.Time) {
	for _, v := range vs.list("") {
		if !v.Options.Passing || v.socket == "" {
			continue
		}
		vs.mu.Lock()
		s := vs.mu.served[v.Number]
		if s != nil && v.clients > 0 && now.After(s.used) {
			s.used = now
		}
		passed := s != nil && now.Sub(s.used) >= passingWait && !invariant.Planted("datapath/passing-stays")
		vs.mu.Unlock()
		if !passed {
			continue
		}
		vs.log.Info("nobody uses the view any more", "view", viewID(v.Number))
		if err := vs.close(viewID(v.Number)); err != nil && !errors.Is(err, errNoView) {
			vs.log.Error("view is not closed", "view", viewID(v.Number), "error", err)
		}
	}
}

// stop ends the serving of all views.
func (vs *views) stop() {
	vs.mu.Lock()
	vs.mu.closed = true
	var all []uint64
	for n := range vs.mu.served {
		all = append(all, n)
	}
	vs.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range all {
		wg.Go(func() { vs.unserve(n) })
	}
	wg.Wait()
}

// thisBoot names this boot of the machine; zero where the system does not.
func thisBoot() (boot [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return boot
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err == nil && len(raw) == len(boot) {
		boot = [16]byte(raw)
	}
	return boot
}
