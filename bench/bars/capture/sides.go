package main

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// sides are what serves a guest's disk, and what they stand on.
type sides struct {
	binaries string // folder
	lab      *drive.Lab
	parts    map[string]int // processes of the lab, by name
	run      string         // folder of the sockets and shared memory of what is no lab's
	// A lab's filter, one that no VRA attaches to, and the peers.
	on, off, qemu, nbdkit, qemuNBD *server
	cached                         *server // a filter that writes into the page cache, of a lab of its own
	cachedLab                      *drive.Lab
	mirror                         *mirrored
	stop                           []func() error
}

// server is a process that serves a disk to guests.
type server struct {
	vhost string // socket
	nbd   string // URI
	path  string // of a file that nobody serves
	pid   int
	all   []int        // pid, and the processes that work with it
	end   func() error // ends the process that was started, once; the run's end does too
}

// begin starts the lab and the filter that no VRA attaches to.
func (b *bench) begin() (err error) {
	if b.binaries, err = b.Fresh("bin"); err != nil {
		return err
	}
	if err := drive.Build(b.Context, ".", b.binaries, ""); err != nil {
		return err
	}
	if b.run, err = os.MkdirTemp("/dev/shm", "holdfast-bars-"); err != nil {
		return err
	}
	b.stop = append(b.stop, func() error { return os.RemoveAll(b.run) })
	store := filepath.Join(b.run, "store") // the other site's disk is not the guest's
	if err := os.Mkdir(store, 0o700); err != nil {
		return err
	}
	if b.lab, err = drive.Up(b.Context, b.binaries, filepath.Join(b.Dir, "lab"), nil, "--size", fmt.Sprint(b.size), "--overcommit", "--target-store", store); err != nil {
		return err
	}
	b.stop = append(b.stop, b.lab.Down)
	v := b.lab.Volumes[0]
	b.on = &server{vhost: v.VhostUser, nbd: v.NBD}
	if b.on.pid, err = b.lab.PID(b.Context, "vra-filter"); err != nil {
		return err
	}
	if err := b.lay(); err != nil {
		return err
	}
	b.off, err = b.lonely()
	return err
}

func (b *bench) close() {
	for i := len(b.stop) - 1; i >= 0; i-- {
		if err := b.stop[i](); err != nil {
			fmt.Println("bars:", err)
		}
	}
}

// The disks of those that are no lab's.
const (
	offDisk    = "off.raw"
	qemuDisk   = "qemu.raw"
	nbdkitDisk = "nbdkit.raw"
)

// layTurn is how much of one disk is written before the next has its turn.
const layTurn = 4 << 20

// lay writes all disks whole, so that no measurement allocates: the lab's by its filter, the others as files. They
// take turns, a few MiB each: where a file stands decides for how fast it is by more than what serves it, and so
// all of them stand everywhere.
func (b *bench) lay() error {
	g, err := guest.New(guest.Options{Slots: 1, SlotBytes: layTurn})
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Connect(b.on.vhost); err != nil {
		return err
	}
	var disks []*os.File
	for _, name := range []string{offDisk, qemuDisk, nbdkitDisk} {
		f, err := os.Create(filepath.Join(b.Dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		disks = append(disks, f)
	}
	for at := int64(0); at < b.size; at += layTurn {
		p := b.data[at%int64(len(b.data)):][:min(layTurn, b.size-at)]
		if err := g.Write(0, p, at); err != nil {
			return err
		}
		for _, f := range disks {
			if _, err := f.WriteAt(p, at); err != nil {
				return err
			}
			if err := f.Sync(); err != nil { // it has its place then
				return err
			}
		}
	}
	if err := g.Flush(0); err != nil {
		return err
	}
	// What is cached of them would have to be dropped again for each direct write.
	return bars.DropCaches()
}

// lonely starts a filter without a VRA.
func (b *bench) lonely() (*server, error) {
	s := &server{vhost: filepath.Join(b.run, "vhost")}
	c := config.Filter{
		RunDir: b.run, PoolSocket: filepath.Join(b.run, "pool"), Group: config.FilterGroup{Name: "off", ID: 1},
		Volumes: []config.FilterVolume{{Name: "vol1", ID: 1, Path: filepath.Join(b.Dir, offDisk), VhostUser: s.vhost}},
	}
	text, err := config.Marshal(&c)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.run, "filter.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.Context, filepath.Join(b.binaries, "vra-filter"), "--config", file)
	return s, b.start(cmd, s)
}

// start starts what serves on the sockets of s, and returns once it does.
func (b *bench) start(cmd *exec.Cmd, s *server) error {
	log, err := os.Create(filepath.Join(b.run, filepath.Base(cmd.Path)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.pid = cmd.Process.Pid
	s.all = []int{s.pid}
	s.end = sync.OnceValue(func() error {
		err := cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait() // how it ends is its own affair
		return err
	})
	b.stop = append(b.stop, s.end)
	at := nbd.URI{Network: "unix", Address: s.vhost}
	if s.vhost == "" {
		if at, err = nbd.ParseURI(s.nbd); err != nil {
			return err
		}
	}
	for range 500 {
		if serves(at) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	said, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s does not serve in 5 s: %s", cmd.Path, said)
}

// serves says whether there is a server: one of a machine's disk may take one connection alone, and is only looked for.
func serves(at nbd.URI) bool {
	if at.Network == "unix" {
		_, err := os.Stat(at.Address)
		return err == nil
	}
	c, err := net.Dial(at.Network, at.Address)
	return err == nil && c.Close() == nil
}

// openPeer starts qemu-storage-daemon on a raw file of its own.
func (b *bench) openPeer() error {
	b.qemu = &server{vhost: filepath.Join(b.run, "qemu")}
	return b.start(exec.CommandContext(b.Context, "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=file,filename="+filepath.Join(b.Dir, qemuDisk)+",cache.direct=on,aio=native",
		"--blockdev", "driver=raw,node-name=raw,file=file",
		"--export", "type=vhost-user-blk,id=disk,node-name=raw,writable=on,addr.type=unix,addr.path="+b.qemu.vhost), b.qemu)
}

// link is the part of a lab that carries what goes from site to site.
const link = "link"

// settled waits until the labs have sent everything, and rest.
func (b *bench) settled() (err error) {
	if b.parts, err = b.settledLab(b.lab, b.on); err == nil && b.cachedLab != nil {
		_, err = b.settledLab(b.cachedLab, b.cached)
	}
	return err
}

// settledLab waits for one lab, whose filter is s, and says what its parts are.
func (b *bench) settledLab(lab *drive.Lab, s *server) (parts map[string]int, err error) {
	const looks, rest = 240, 250 * time.Millisecond
	for range looks {
		st, err := lab.Status(b.Context)
		if err == nil && st.State == "protected" && st.BytesBehind != nil && *st.BytesBehind == 0 {
			m, err := lab.Machinery(b.Context)
			if err != nil {
				return nil, err
			}
			parts = map[string]int{link: m.Supervisor}
			for _, p := range m.Processes {
				parts[p.Name] = p.PID
			}
			s.all = slices.Collect(maps.Values(parts))
			began := s.cpu()
			time.Sleep(rest)
			if used(began, s.cpu()) < 0.1*rest.Seconds() {
				return parts, nil
			}
		}
		select {
		case <-b.Context.Done():
			return nil, b.Context.Err()
		case <-time.After(rest):
		}
	}
	st, err := lab.Status(b.Context)
	return nil, fmt.Errorf("the lab is not done in %v: %+v, %v", looks*rest, st, err)
}

// cpu is what the side's processes have used so far, in seconds; those that have ended are left out.
func (s *server) cpu() map[int]float64 {
	all := map[int]float64{}
	for _, pid := range s.all {
		if cpu, err := bars.CPUOfProcess(pid); err == nil {
			all[pid] = cpu
		}
	}
	return all
}

// used is what those that lived all the time have used in between.
func used(before, after map[int]float64) (sum float64) {
	for pid, cpu := range after {
		if had, ok := before[pid]; ok {
			sum += cpu - had
		}
	}
	return sum
}

// during runs f, and returns what the server used meanwhile, in CPU seconds, and how many cores others
// than the side did. F says what processes of its own used that have ended.
func during(s *server, f func() (cpu float64, err error)) (server, foreign float64, err error) {
	before, began := s.cpu(), bars.Look()
	own, err := f()
	after := s.cpu()
	return after[s.pid] - before[s.pid], began.Foreign(own + used(before, after)), err
}
