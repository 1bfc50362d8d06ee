//go:build e2e

package scenario_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// pair is two sites of equal rank, each with a vra that may be source and target, without a lab's supervisor: what ends
// stays ended until it is started again.
type pair struct {
	t     *testing.T
	dir   string
	bin   string
	sites [2]site
	procs map[string]*proc
	front string // how machines reach their disks; empty is vhost-user
}

// site is one of them.
type site struct {
	name   string
	config *config.VRA
	file   string
	client *api.Client
}

// proc is a daemon.
type proc struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

const pairGroup = "erp"

func newPair(t *testing.T, size int64, volumes ...string) *pair {
	t.Helper()
	short, err := os.MkdirTemp("", "hf") // sockets have short names
	p := &pair{t: t, dir: short, bin: built(t, ""), procs: map[string]*proc{}}
	p.must(err)
	t.Cleanup(func() { os.RemoveAll(short) })
	t.Cleanup(p.end)
	now := time.Now()
	var cas [2]*pairing.CA
	ports := p.freePorts(4)
	for i, name := range []string{"east", "west"} {
		s, other := &p.sites[i], []string{"west", "east"}[i]
		at := func(parts ...string) string { return filepath.Join(append([]string{p.dir, name}, parts...)...) }
		p.must(os.MkdirAll(at("disks"), 0o700))
		cas[i], err = pairing.NewCA(name, now)
		p.must(err)
		p.must(cas[i].Save(at("ca.pem"), at("ca-key.pem")))
		leaf, err := cas[i].Issue(pairing.Identity{Role: "vra", ID: name + "-1"}, now, 24*time.Hour)
		p.must(err)
		p.must(leaf.Save(at("cert.pem"), at("key.pem")))
		s.name, s.file = name, at("vra.yaml")
		s.config = &config.VRA{Site: name, ID: name + "-1", DataDir: at("data"), RunDir: at("run"), Socket: at("vra.sock"),
			TLS:    config.TLS{CA: at("ca.pem"), Cert: at("cert.pem"), Key: at("key.pem"), PeerCA: at("peer.pem"), PeerSite: other},
			Target: &config.Target{ListenControl: ports[2*i], ListenData: ports[2*i+1], Store: at("store")}}
		s.client = api.DialUnix(s.config.Socket)
		t.Cleanup(s.client.Close)
	}
	for i := range p.sites {
		p.must(pairing.SavePEM(p.sites[i].config.TLS.PeerCA, cas[1-i].CertPEM()))
	}
	east := p.sites[0].config
	g := config.SourceGroup{Name: pairGroup, ID: 0x1111, Stream: 0x2222, Lineage: 0x3333, Interval: config.Duration(time.Second),
		Target: config.Endpoint{Control: ports[2], Data: ports[3]}, Filters: []string{filepath.Join(p.dir, "east", "pool.sock")}}
	f := &config.Filter{RunDir: east.RunDir, Group: config.FilterGroup{Name: pairGroup, ID: g.ID}, PoolSocket: g.Filters[0]}
	for i, v := range volumes {
		disk := filepath.Join(p.dir, "east", "disks", v+".raw")
		d, err := os.Create(disk)
		p.must(err)
		p.must(errors.Join(d.Truncate(size), d.Close()))
		g.Volumes = append(g.Volumes, config.SourceVolume{Name: v, ID: uint32(i + 1)})
		f.Volumes = append(f.Volumes, config.FilterVolume{Name: v, ID: uint32(i + 1), Path: disk, NBD: filepath.Join(p.dir, "east", v+".sock")})
	}
	east.Source = &config.Source{Groups: []config.SourceGroup{g}}
	p.write(filepath.Join(p.dir, "east", "filter.yaml"), f)
	for _, s := range p.sites {
		p.write(s.file, s.config)
	}
	p.context(0)
	return p
}

// context writes the user's context, with the site of that number as the source.
func (p *pair) context(source int) {
	p.t.Helper()
	c := &config.Context{Group: pairGroup, Recovery: filepath.Join(p.dir, "jobs")}
	for i, role := range []string{"source", "target"} {
		s := p.sites[(source+i)%2]
		c.VRAs = append(c.VRAs, config.ContextVRA{Site: s.name, Role: role, Socket: s.config.Socket})
	}
	p.write(filepath.Join(p.dir, "context.yaml"), c)
}

func (p *pair) write(name string, c interface{ Validate() error }) {
	p.t.Helper()
	p.must(c.Validate())
	text, err := config.Marshal(c)
	p.must(err)
	p.must(os.WriteFile(name, text, 0o600))
}

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) freePorts(n int) (addresses []string) {
	var held []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		p.must(err)
		held = append(held, l)
		addresses = append(addresses, l.Addr().String())
	}
	for _, l := range held {
		l.Close()
	}
	return addresses
}

// start starts a daemon under a name, with more of an environment.
func (p *pair) start(name, binary, file string, env ...string) {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	p.must(err)
	cmd := exec.Command(filepath.Join(p.bin, binary), "--config", file)
	cmd.Stderr, cmd.Env = log, append(os.Environ(), env...)
	p.must(cmd.Start())
	d := &proc{cmd: cmd, log: log, done: make(chan struct{})}
	p.procs[name] = d
	go func() { defer close(d.done); cmd.Wait(); log.Close() }()
}

// startVRA starts the vra of a site.
func (p *pair) startVRA(i int) { p.t.Helper(); p.start(p.sites[i].name, "vra", p.sites[i].file) }

// kill ends a daemon at once.
func (p *pair) kill(name string) {
	if d := p.procs[name]; d != nil {
		d.cmd.Process.Kill()
		<-d.done
		delete(p.procs, name)
	}
}

// stop ends a daemon in good order.
func (p *pair) stop(name string) {
	if d := p.procs[name]; d != nil {
		d.cmd.Process.Signal(os.Interrupt)
		<-d.done
		delete(p.procs, name)
	}
}

func (p *pair) end() {
	for name := range p.procs {
		p.kill(name)
	}
	p.endMachines()
	p.endFilters()
	if !p.t.Failed() {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(p.dir, "*.log"))
	for _, name := range logs {
		text, _ := os.ReadFile(name)
		p.t.Logf("%s ends:\n%s", filepath.Base(name), text[max(0, len(text)-6<<10):])
	}
}

// endFilters ends the filters that jobs have started, and endMachines the machines.
func (p *pair) endFilters() { p.endJobs("*.pid") }

func (p *pair) endMachines() { p.endJobs("machines", "*", "pid") }

func (p *pair) endJobs(pid ...string) {
	pids, _ := filepath.Glob(filepath.Join(append([]string{p.dir, "jobs", "*"}, pid...)...))
	for _, name := range pids {
		text, _ := os.ReadFile(name)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			if f, err := os.FindProcess(pid); err == nil {
				f.Kill()
			}
		}
	}
}

// holdfast runs the user's command, and reads its JSON into out unless that is nil.
func (p *pair) holdfast(out any, args ...string) error {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	defer cancel()
	if out != nil {
		args = append(args, "-o", "json")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "holdfast"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_CONTEXT="+filepath.Join(p.dir, "context.yaml"))
	var said bytes.Buffer
	cmd.Stderr = &said
	text, err := cmd.Output()
	p.t.Logf("holdfast %s: %s", strings.Join(args, " "), said.Bytes())
	if err != nil {
		return fmt.Errorf("%w: %s", err, said.Bytes())
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// await asks a site until ok is content.
func (p *pair) await(what string, ok func() bool) {
	p.t.Helper()
	await(p.t, 40*time.Second, what, ok)
}

// holds compares the first volume at a checkpoint of the second site with what it should hold.
func (p *pair) holds(checkpoint string, image []byte) {
	p.t.Helper()
	res, err := p.sites[1].client.Views.Open(p.t.Context(), &holdfastv1.ViewsServiceOpenRequest{Group: pairGroup, Checkpoint: checkpoint})
	p.must(err)
	p.shows(p.disk(res.View.Volumes[0].Nbd), image)
}

// state waits for a state of the group at a site.
func (p *pair) state(i int, want ...string) (g *holdfastv1.Group) {
	p.t.Helper()
	p.await(fmt.Sprintf("%v at %s", want, p.sites[i].name), func() bool {
		res, err := p.sites[i].client.Status.Get(p.t.Context(), &holdfastv1.StatusServiceGetRequest{Group: pairGroup})
		if err != nil || len(res.Groups) != 1 {
			return false
		}
		g = res.Groups[0]
		for _, w := range want {
			if g.State == w {
				return true
			}
		}
		return false
	})
	return g
}

// checkpoint makes one from the site that is the source, and waits for it.
func (p *pair) checkpoint(source int, tag string) string {
	p.t.Helper()
	var id string
	p.await("checkpoint "+tag, func() bool {
		res, err := p.sites[source].client.Checkpoints.Create(p.t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Group: pairGroup, Tag: tag, IdempotencyKey: tag})
		id = res.GetCheckpoint().GetId()
		return err == nil
	})
	return id
}
