// Command recovery measures what recovery is held to (the rows of bars.Recovery) and keeps the samples in
// bench/results/bars-recovery.jsonl.
//
// A lab's group is brought up by `holdfast failover test`, as a user would. The time is from the
// exec of the command until QEMU was seen to run the machine, which is a moment after its first
// instruction; ours is until the step began in which QEMU is started. The machines have no
// more than their firmware to run, since what a guest's boot takes is not ours.
//
// A guest's reads go through QEMU on either side, so views are read by a guestless front end: over vhost-user as a machine
// has its disk, and over NBD by the block layer of a qemu-storage-daemon, which exports the view with the options that machines get; beside
// both, by the same front end, such a daemon's export of the plain disk, direct and aio=native. As scales the same daemon reads the plain disk from nbdkit, which says what NBD costs a guest, fio reads the view over NBD itself, and beside it
// the plain disk by libaio, which has no QEMU between, and by the same NBD client from nbdkit, which leaves out what NBD itself costs. The disk that a machine has moved onto
// is read by libaio beside the machine that runs on it, and so is the plain disk. What a failback sends is told by the story of one, a test. Needs root, to drop caches.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, " (three times -mib)")
	mib := flag.Int64("mib", 1024, "MiB of the disk whose view is read")
	length := flag.Duration("length", 10*time.Second, "of each measurement of a rate or of lag")
	limit := flag.Duration("limit", 25*time.Minute, "of the whole run: what is not measured by then is not")
	flag.Parse()
	o.Main(nil, func(r *bars.Run) error {
		ctx, stop := context.WithTimeoutCause(r.Context, *limit, fmt.Errorf("not done within -limit %v", *limit))
		defer stop()
		r.Context = ctx
		b := &bench{Run: r, size: *mib << 20, length: *length}
		defer b.down()
		return r.Measure("recovery", bars.Head{
			Title: "The bars of recovery", Command: "make bars-recovery", Note: "both sites, the guest's load and the machines that come up share it",
		}, o.Keep, []bars.Measure{
			{Rows: []string{"first-one", "first-ours"}, Do: b.one},
			{Rows: []string{"lag-test"}, Do: b.lag},
			{Rows: []string{"view-qemu", "view-qemu-nbd", "view-vhost", "view-qd16", "view-nbd"}, Do: b.view},
			{Rows: []string{"plain-qd16"}, Do: b.plain}, // after it its lab is used up
			{Rows: []string{"first-twenty"}, Do: b.twenty},
			{Rows: []string{"failback"}, Do: b.failback},
		})
	})
}

// bench is one run.
type bench struct {
	*bars.Run
	size     int64
	length   time.Duration
	binaries string
	lab      *drive.Lab
	volumes  int
	data     []byte
	history  *load.History
	seed     uint64 // of the last load of a guest's
}

// up has a lab with so many volumes, the first of them written whole.
func (b *bench) up(volumes int, size int64) (err error) {
	if b.lab != nil && b.volumes == volumes {
		return nil
	}
	b.down()
	if b.binaries == "" {
		if b.binaries, err = b.Fresh("bin"); err != nil {
			return err
		}
		if err := drive.Build(b.Context, ".", b.binaries, ""); err != nil {
			return err
		}
		b.data = load.Corpus(load.DB, 1)
	}
	dir, err := b.Fresh("lab")
	if err != nil {
		return err
	}
	b.volumes, b.history = volumes, &load.History{}
	if b.lab, err = drive.Up(b.Context, b.binaries, dir, nil, "--volumes", fmt.Sprint(volumes), "--size", fmt.Sprint(size), "--link", "none", "--overcommit"); err != nil {
		return err
	}
	if err := b.write(1, load.Profile{Name: "fill", Kind: load.DB, Min: 64 << 10, Max: 1 << 20, Align: 64 << 10}, size); err != nil {
		return err
	}
	return b.lab.Protected(b.Context)
}

func (b *bench) down() {
	if b.lab != nil {
		if err := b.lab.Down(); err != nil {
			fmt.Println("bars:", err)
		}
		b.lab = nil
	}
}

// write writes so many bytes to the first volume.
func (b *bench) write(workers int, p load.Profile, bytes int64) error {
	s := b.lab.Stamper(1, p, workers, b.data, b.history)
	ctx, stop := context.WithCancel(b.Context)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if s.Stats().Bytes >= bytes {
				stop()
			}
		}
	}
}

// machines writes the file of so many machines, one a volume.
func (b *bench) machines() (string, error) {
	var file config.Machines
	for i, v := range b.lab.Volumes {
		file.Machines = append(file.Machines, config.Machine{Name: fmt.Sprintf("vm%d", i), Memory: 128 << 20, Disks: []string{v.Name}})
	}
	text, err := config.Marshal(&file)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.Dir, "machines.yaml")
	return path, os.WriteFile(path, text, 0o600)
}

// report is what the command tells of a job.
type report struct {
	ID    string
	Began string
	Steps []struct {
		Do      string
		Began   string
		Seconds float64
	}
}

// bring brings the group up, and says how long it took from the exec until the first and the last machine
// ran, and until the first QEMU was started.
func (b *bench) bring() (id string, first, last, ours float64, err error) {
	file, err := b.machines()
	if err != nil {
		return "", 0, 0, 0, err
	}
	var r report
	began := time.Now()
	if err := b.lab.JSON(b.Context, &r, "failover", "test", "--machines", file); err != nil {
		return "", 0, 0, 0, err
	}
	for _, s := range r.Steps {
		at, err := time.Parse(time.RFC3339, s.Began)
		if err != nil {
			return "", 0, 0, 0, err
		}
		if s.Do != "start" {
			continue
		}
		if last = at.Sub(began).Seconds() + s.Seconds; ours == 0 {
			first, ours = last, at.Sub(began).Seconds()
		}
	}
	return r.ID, first, last, ours, nil
}

func (b *bench) stop(id string) error {
	return b.lab.JSON(b.Context, nil, "failover", "test", "--stop", id)
}

func (b *bench) one() error {
	if err := b.up(1, b.size); err != nil {
		return err
	}
	for range b.Pairs {
		if err := bars.DropCaches(); err != nil {
			return err
		}
		id, first, _, ours, err := b.bring()
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "first-one", Value: first, Ours: first, OursUnit: "s"})
		b.Sample(bars.Sample{Row: "first-ours", Value: ours * 1000, Ours: ours * 1000, OursUnit: "ms"})
		if err := b.stop(id); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) twenty() error {
	const machines = 20
	if err := b.up(machines, 64<<20); err != nil {
		return err
	}
	for range b.Pairs {
		id, first, last, _, err := b.bring()
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "first-twenty", Value: last, Ours: last, OursUnit: "s", Note: fmt.Sprintf("the first after %.2f s", first)})
		if err := b.stop(id); err != nil {
			return err
		}
	}
	return nil
}

// lagRate is what the guest writes beside: far from what the machine carries.
const lagRate = 4 << 20

// lag compares the lag of the running protection before a test failover and during one.
func (b *bench) lag() error {
	if err := b.up(1, b.size); err != nil {
		return err
	}
	source, err := b.dial(api.RoleSource)
	if err != nil {
		return err
	}
	defer source.Close()
	p := load.Profile{Name: "lag", Kind: load.DB, Min: 4 << 10, Max: 64 << 10, Align: 4 << 10, BytesPerSecond: lagRate}
	for range b.Pairs {
		s := b.lab.Stamper(1, p, 4, b.data, &load.History{})
		ctx, stop := context.WithCancel(b.Context)
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		if _, err = b.p99(source); err == nil { // until it runs evenly
			var before, during float64
			if before, err = b.p99(source); err == nil {
				brought := make(chan error, 1)
				go func() {
					id, _, _, _, err := b.bring()
					if err == nil {
						err = b.stop(id)
					}
					brought <- err
				}()
				during, err = b.p99(source)
				if berr := <-brought; err == nil {
					err = berr
				}
			}
			if err == nil {
				b.Sample(bars.Sample{Row: "lag-test", Value: during / before, Ours: during * 1000, Peer: before * 1000, OursUnit: "ms"})
			}
		}
		stop()
		if serr := <-done; err == nil {
			err = serr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dial connects to a vra of the lab.
func (b *bench) dial(role string) (*api.Client, error) {
	c, err := config.LoadContext(b.lab.Context)
	if err != nil {
		return nil, err
	}
	vra, ok := c.VRA(role)
	if !ok {
		return nil, fmt.Errorf("%s names no %s", b.lab.Context, role)
	}
	return api.DialUnix(vra.Socket), nil
}

// p99 samples the group's lag for the length of a measurement, in seconds.
func (b *bench) p99(source *api.Client) (float64, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(b.length)
	defer end.Stop()
	var lags []float64
	for {
		select {
		case <-b.Context.Done():
			return 0, b.Context.Err()
		case <-tick.C:
			res, err := source.Status.Get(b.Context, &holdfastv1.StatusServiceGetRequest{})
			if err != nil {
				return 0, err
			}
			for _, g := range res.GetGroups() {
				if g.LagSeconds != nil {
					lags = append(lags, g.GetLagSeconds())
				}
			}
		case <-end.C:
			if len(lags) == 0 {
				return 0, fmt.Errorf("no lag was told within %v", b.length)
			}
			slices.Sort(lags)
			return max(lags[int(math.Ceil(0.99*float64(len(lags))))-1], 1e-3), nil // what is told is milliseconds
		}
	}
}

// view reads at random places of a view, of the protected disk's own file, and of that behind another's NBD server.
func (b *bench) view() error {
	if err := b.up(1, b.size); err != nil {
		return err
	}
	if _, err := b.lab.Checkpoint(b.Context, "read"); err != nil {
		return err
	}
	disk, err := b.disk()
	if err != nil {
		return err
	}
	v, err := b.lab.Open(b.Context, "read")
	if err != nil {
		return err
	}
	defer b.lab.Close(b.Context, v)
	uri, stop, err := b.nbdkit(disk)
	if err != nil {
		return err
	}
	defer stop()
	socket, stop, err := b.qemu("driver=file,node-name=file,read-only=on,locking=off,filename="+disk+",cache.direct=on,aio=native",
		"driver=raw,node-name="+qemuNode+",read-only=on,file=file")
	if err != nil {
		return err
	}
	defer stop()
	through, stop, err := b.qemuNBD(v.Volumes[0].NBD)
	if err != nil {
		return err
	}
	defer stop()
	peer, stop, err := b.qemuNBD(uri)
	if err != nil {
		return err
	}
	defer stop()
	var view, plain, nbdkit, qemu, kit, shared, raw float64
	for i := range b.Pairs {
		foreign, err := b.Pair(i,
			b.reads(&view, "--ioengine=nbd", "--uri="+v.Volumes[0].NBD),
			b.ofFile(&plain, disk),
			b.reads(&nbdkit, "--ioengine=nbd", "--uri="+uri),
			b.asGuest(&qemu, through),
			b.asGuest(&kit, peer),
			b.asGuest(&shared, v.Volumes[0].VhostUser),
			b.asGuest(&raw, socket))
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "view-qemu", Value: qemu / raw, Ours: qemu, Peer: raw, OursUnit: "IOPS", Foreign: foreign})
		b.Sample(bars.Sample{Row: "view-qemu-nbd", Value: kit / raw, Ours: kit, Peer: raw, OursUnit: "IOPS", Foreign: foreign})
		b.Sample(bars.Sample{Row: "view-qd16", Value: view / plain, Ours: view, Peer: plain, OursUnit: "IOPS", Foreign: foreign})
		b.Sample(bars.Sample{Row: "view-nbd", Value: view / nbdkit, Ours: view, Peer: nbdkit, OursUnit: "IOPS", Foreign: foreign})
		b.Sample(bars.Sample{Row: "view-vhost", Value: shared / raw, Ours: shared, Peer: raw, OursUnit: "IOPS", Foreign: foreign})
	}
	return nil
}

// disk is the file of the protected disk.
func (b *bench) disk() (string, error) {
	var where struct{ Disk string }
	err := b.lab.JSON(b.Context, &where, "attach", "--no-guest", "--dry-run", "--volume", b.lab.Volumes[0].Name)
	return where.Disk, err
}

// reads is a side that reads by one of fio's engines, and puts down how many reads a second there were.
func (b *bench) reads(iops *float64, engine ...string) bars.Side {
	return func() (foreign float64, err error) {
		*iops, foreign, err = b.fio(engine...)
		return foreign, err
	}
}

// ofFile is a side that reads a file past the page cache.
func (b *bench) ofFile(iops *float64, file string) bars.Side {
	return b.reads(iops, "--ioengine=libaio", "--direct=1", "--readonly", "--filename="+file)
}

// nbdkit serves a file for reading until stop.
func (b *bench) nbdkit(disk string) (uri string, stop func(), err error) {
	socket, stop, err := b.peer(func(socket string) []string { return []string{"nbdkit", "-f", "-r", "-U", socket, "file", disk} },
		func(socket string) bool {
			c, err := net.Dial("unix", socket)
			return err == nil && c.Close() == nil
		})
	return "nbd+unix:///?socket=" + socket, stop, err
}

// qemuNode names what a qemu-storage-daemon exports.
const qemuNode = "disk"

// qemu serves the last of some nodes of QEMU's block layer, which is called qemuNode, for reading as a vhost-user-blk device until stop.
func (b *bench) qemu(nodes ...string) (socket string, stop func(), err error) {
	return b.peer(func(socket string) []string {
		argv := []string{"qemu-storage-daemon"}
		for _, n := range nodes {
			argv = append(argv, "--blockdev", n)
		}
		return append(argv, "--export", "type=vhost-user-blk,id=disk,node-name="+qemuNode+",addr.type=unix,addr.path="+socket)
	}, isThere) // which takes one guest alone
}

// qemuNBD is qemu of an NBD export at a unix socket, with the options that machines get for it (control/hypervisor/kvm), but for reading alone.
func (b *bench) qemuNBD(uri string) (socket string, stop func(), err error) {
	u, err := nbd.ParseURI(uri)
	if err != nil {
		return "", nil, err
	}
	return b.qemu("driver=nbd,node-name=" + qemuNode + ",read-only=on,discard=unmap,reconnect-delay=3600,server.type=unix,server.path=" + u.Address + ",export=" + u.Export)
}

func isThere(socket string) bool {
	_, err := os.Stat(socket)
	return err == nil
}

// peer runs a program that serves at a socket, until stop.
func (b *bench) peer(command func(socket string) []string, serves func(socket string) bool) (socket string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "holdfast-bars-") // the path of a socket is short
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "socket")
	ctx, end := context.WithCancel(b.Context)
	argv := command(socket)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stderr = &said
	stop = func() {
		end()
		_ = cmd.Wait() // it was killed
		os.RemoveAll(dir)
	}
	if err := cmd.Start(); err != nil {
		os.RemoveAll(dir)
		end()
		return "", nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	for deadline := time.Now().Add(10 * time.Second); !serves(socket); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			stop()
			return "", nil, fmt.Errorf("%s does not serve in 10 s: %s", argv[0], said.Bytes())
		}
	}
	return socket, stop, nil
}

// asGuest is a side that reads a vhost-user-blk device as fio reads the others.
func (b *bench) asGuest(iops *float64, socket string) bars.Side {
	return func() (foreign float64, err error) {
		g, err := guest.New(guest.Options{Slots: 16, SlotBytes: 4096})
		if err != nil {
			return 0, err
		}
		defer g.Close()
		if err := g.Connect(socket); err != nil {
			return 0, err
		}
		b.seed++
		m, err := g.Run(guest.Load{Bytes: 4096, Depth: 16, Size: b.size, Duration: b.length, Seed: b.seed})
		if err == nil && (m.Errors > 0 || m.Requests == 0) {
			err = fmt.Errorf("%d of %d reads failed", m.Errors, m.Requests)
		}
		*iops = float64(m.Requests) / m.Took.Seconds()
		return 0, err
	}
}

// fio reads 4 KiB at random places at depth 16, and returns how many a second. The processes of the lab are
// part of what is measured, so that nobody can be told apart from them: no cores count as foreign.
func (b *bench) fio(engine ...string) (iops, foreign float64, err error) {
	out := filepath.Join(b.Dir, "fio.json")
	args := append([]string{"--name=guest", "--rw=randread", "--bs=4k", "--iodepth=16", fmt.Sprintf("--size=%d", b.size), "--time_based=1",
		fmt.Sprintf("--runtime=%dms", b.length.Milliseconds()), "--norandommap=1", "--output-format=json", "--output=" + out}, engine...)
	if said, err := exec.CommandContext(b.Context, "fio", args...).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("fio: %w: %s", err, said)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return 0, 0, err
	}
	var told struct {
		Jobs []struct {
			Error int
			Read  struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(text, &told); err != nil {
		return 0, 0, fmt.Errorf("fio: %w", err)
	}
	if len(told.Jobs) != 1 || told.Jobs[0].Error != 0 || told.Jobs[0].Read.IOPS == 0 {
		return 0, 0, fmt.Errorf("fio tells of %+v", told.Jobs)
	}
	return told.Jobs[0].Read.IOPS, 0, nil
}
