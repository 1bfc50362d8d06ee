// Package several runs a group that several source VRAs share, as real processes on this machine: a filter
// and a vra for each host, one vra as the target, keys and files for all. The end-to-end
// tests and the bars stand on it.
package several

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// Config is a group to run.
type Config struct {
	Binaries string // folder of vra and vra-filter
	Dir      string // an empty folder, for everything but sockets and shared memory
	RunDir   string // an empty folder in memory with a short name
	Hosts    int
	Volumes  int   // of each host
	Bytes    int64 // of each volume
	Interval time.Duration
	// VhostUser has guests reach volumes through shared memory, and not over NBD.
	VhostUser bool
}

// Group is a group that runs.
type Group struct {
	c         Config
	ports     []int // of the target: control and data; then of each host, for cuts
	processes map[string]*exec.Cmd
	clients   map[string]*api.Client
}

// Target is the name of the target's process, and Source and Filter are those of a host, from 0.
const Target = "target"

func Source(host int) string { return fmt.Sprintf("source%d", host) }
func Filter(host int) string { return fmt.Sprintf("filter%d", host) }

const (
	near, far = "west", "east"
	groupID   = config.ID(0x51)
	leafLife  = 24 * time.Hour
)

// Up writes everything and starts all processes. The caller ends it with Down, also after an error.
func Up(c Config) (*Group, error) {
	g := &Group{c: c, processes: map[string]*exec.Cmd{}, clients: map[string]*api.Client{}}
	if err := g.write(); err != nil {
		return g, err
	}
	names := []string{Target}
	for h := range c.Hosts {
		names = append(names, Filter(h), Source(h))
	}
	for _, n := range names {
		if err := g.Start(n); err != nil {
			return g, err
		}
	}
	return g, nil
}

// Start starts a process that does not run.
func (g *Group) Start(name string) error {
	binary := "vra"
	if name[0] == 'f' {
		binary = "vra-filter"
	}
	log, err := os.OpenFile(filepath.Join(g.c.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(g.c.Binaries, binary), "--config", g.path(name+".yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	g.processes[name] = cmd
	return nil
}

// Kill ends a process as nothing but SIGKILL does.
func (g *Group) Kill(name string) error {
	cmd := g.processes[name]
	delete(g.processes, name)
	if cmd == nil {
		return fmt.Errorf("%s does not run", name)
	}
	err := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return err
}

// Down ends all.
func (g *Group) Down() error {
	var errs []error
	for _, c := range g.clients {
		c.Close()
	}
	for name := range g.processes {
		errs = append(errs, g.Kill(name))
	}
	return errors.Join(errs...)
}

// Client asks a vra over its socket.
func (g *Group) Client(name string) *api.Client {
	if g.clients[name] == nil {
		g.clients[name] = api.DialUnix(g.socket(name))
	}
	return g.clients[name]
}

// PID is a process's.
func (g *Group) PID(name string) int { return g.processes[name].Process.Pid }

// Log is the path of what a process said.
func (g *Group) Log(name string) string { return g.path(name + ".log") }

// Socket is where a vra answers.
func (g *Group) socket(name string) string { return filepath.Join(g.c.RunDir, name+".sock") }

// Volume is the name of a host's volume; both count from 0.
func (g *Group) Volume(host, volume int) string { return fmt.Sprintf("vol%d", g.id(host, volume)) }

func (g *Group) id(host, volume int) uint32 { return uint32(host*g.c.Volumes + volume + 1) }

// Dial connects to a host's volume as a guest does.
func (g *Group) Dial(ctx context.Context, host, volume int) (*nbd.Client, error) {
	return nbd.Dial(ctx, "nbd+unix:///"+g.Volume(host, volume)+"?socket="+g.disk(host, volume))
}

// Vhost is the socket of a host's volume, where that is reached through shared memory.
func (g *Group) Vhost(host, volume int) string { return g.disk(host, volume) }

func (g *Group) disk(host, volume int) string {
	return filepath.Join(g.c.RunDir, fmt.Sprintf("d%d", g.id(host, volume)))
}

func (g *Group) path(name string) string { return filepath.Join(g.c.Dir, name) }

// write makes folders, disks, keys and files.
func (g *Group) write() error {
	var err error
	if g.ports, err = freePorts(2 + g.c.Hosts); err != nil {
		return err
	}
	if err := g.writeKeys(); err != nil {
		return err
	}
	if err := g.save(Target, g.vra(Target, far, near)); err != nil {
		return err
	}
	for h := range g.c.Hosts {
		f := &config.Filter{RunDir: g.runDir(Source(h)), Group: config.FilterGroup{Name: "shop", ID: groupID}, PoolSocket: g.pool(h)}
		for v := range g.c.Volumes {
			name := g.Volume(h, v)
			disk, err := os.Create(g.path(name))
			if err != nil {
				return err
			}
			if err := errors.Join(disk.Truncate(g.c.Bytes), disk.Close()); err != nil {
				return err
			}
			fv := config.FilterVolume{Name: name, ID: g.id(h, v), Path: g.path(name)}
			if g.c.VhostUser {
				fv.VhostUser = g.disk(h, v)
			} else {
				fv.NBD = g.disk(h, v)
			}
			f.Volumes = append(f.Volumes, fv)
		}
		if err := errors.Join(g.save(Filter(h), f), g.save(Source(h), g.vra(Source(h), near, far))); err != nil {
			return err
		}
	}
	return nil
}

// vra is the file of one, of a site and its peer.
func (g *Group) vra(name, site, peer string) *config.VRA {
	c := &config.VRA{
		Site: site, ID: name, DataDir: g.path(name), RunDir: g.runDir(name), Socket: g.socket(name),
		TLS: config.TLS{CA: g.path(site + ".pem"), Cert: g.path(name + "-cert.pem"), Key: g.path(name + "-key.pem"), PeerCA: g.path(peer + ".pem"), PeerSite: peer},
	}
	if name == Target {
		c.Target = &config.Target{ListenControl: loopback(g.ports[0]), ListenData: loopback(g.ports[1]), Store: g.path("store")}
		return c
	}
	sg := config.SourceGroup{
		Name: "shop", ID: groupID, Lineage: 0x52, Interval: config.Duration(g.c.Interval),
		Target: config.Endpoint{Control: loopback(g.ports[0]), Data: loopback(g.ports[1])},
	}
	c.Source = &config.Source{}
	for h := range g.c.Hosts {
		m := config.GroupSource{VRA: Source(h), Stream: config.ID(0x60 + h), Address: loopback(g.ports[2+h])}
		sg.Sources = append(sg.Sources, m)
		if m.VRA == name {
			c.Source.ListenCuts, sg.Stream, sg.Filters = m.Address, m.Stream, []string{g.pool(h)}
			for v := range g.c.Volumes {
				sg.Volumes = append(sg.Volumes, config.SourceVolume{Name: g.Volume(h, v), ID: g.id(h, v)})
			}
		}
	}
	if len(sg.Sources) == 1 {
		sg.Sources = nil
	}
	c.Source.Groups = []config.SourceGroup{sg}
	return c
}

func (g *Group) runDir(name string) string { return filepath.Join(g.c.RunDir, name) }
func (g *Group) pool(host int) string      { return filepath.Join(g.c.RunDir, fmt.Sprintf("p%d", host)) }

// save checks a file, makes the folders that it names, and writes it.
func (g *Group) save(name string, c interface{ Validate() error }) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	text, err := config.Marshal(c)
	if err != nil {
		return err
	}
	for _, dir := range []string{g.path(name), g.runDir(name), g.path("store")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return os.WriteFile(g.path(name+".yaml"), text, 0o600)
}

func (g *Group) writeKeys() error {
	now := time.Now()
	vras := map[string][]string{far: {Target}}
	for h := range g.c.Hosts {
		vras[near] = append(vras[near], Source(h))
	}
	for site, names := range vras {
		ca, err := pairing.NewCA(site, now)
		if err != nil {
			return err
		}
		if err := ca.Save(g.path(site+".pem"), g.path(site+"-key.pem")); err != nil {
			return err
		}
		for _, name := range names {
			leaf, err := ca.Issue(pairing.Identity{Role: "vra", ID: name}, now, leafLife)
			if err != nil {
				return err
			}
			if err := leaf.Save(g.path(name+"-cert.pem"), g.path(name+"-key.pem")); err != nil {
				return err
			}
		}
	}
	return nil
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// freePorts are ports that nobody listened on a moment ago.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Causes writes a number to the first host's first volume and, once that is answered, to the next host's, and
// so on, then the next number, until ctx ends; it returns the last one. So at any moment that can be
// told from inside, no host's number is above that of the host before it, and none is behind by more than one.
func (g *Group) Causes(ctx context.Context) (n uint64, err error) {
	var disks []*nbd.Client
	defer func() {
		for _, d := range disks {
			d.Close()
		}
	}()
	for h := range g.c.Hosts {
		d, err := g.Dial(context.WithoutCancel(ctx), h, 0)
		if err != nil {
			return 0, err
		}
		disks = append(disks, d)
	}
	p := make([]byte, 4096)
	for ctx.Err() == nil {
		n++
		binary.LittleEndian.PutUint64(p, n)
		for h, d := range disks {
			if _, err := d.WriteAt(p, 0); err != nil {
				return n, fmt.Errorf("host %d: %w", h, err)
			}
		}
	}
	return n, nil
}

// Caused says whether numbers, by host, are of one moment.
func Caused(ns []uint64) bool {
	for i := 1; i < len(ns); i++ {
		if ns[i] > ns[i-1] {
			return false
		}
	}
	return len(ns) == 0 || ns[0]-ns[len(ns)-1] <= 1
}
