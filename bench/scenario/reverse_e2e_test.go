//go:build e2e

package scenario_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

const reverseSize = 64 << 20

// client is a machine's disk at a socket.
func (p *pair) disk(uri string) *nbd.Client {
	p.t.Helper()
	var c *nbd.Client
	p.await("a disk at "+uri, func() (ok bool) {
		var err error
		c, err = nbd.Dial(p.t.Context(), uri)
		return err == nil
	})
	p.t.Cleanup(func() { c.Close() })
	return c
}

// put writes to a disk and to what it should hold.
func (p *pair) put(c *nbd.Client, image []byte, off int64, n int, b byte) {
	p.t.Helper()
	part := bytes.Repeat([]byte{b}, n)
	for i := 0; i < n; i += 512 {
		part[i], part[i+1] = byte(i>>9), byte(i>>17)
	}
	for at := 0; at < n; at += 1 << 20 {
		_, err := c.WriteAt(part[at:min(n, at+1<<20)], off+int64(at))
		p.must(err)
	}
	copy(image[off:], part)
	p.must(c.Flush())
}

// shows compares a disk with what it should hold.
func (p *pair) shows(c *nbd.Client, image []byte) {
	p.t.Helper()
	got := make([]byte, len(image))
	for at := 0; at < len(got); at += 1 << 20 {
		_, err := c.ReadAt(got[at:at+1<<20], int64(at))
		p.must(err)
	}
	for i := range got {
		if got[i] != image[i] {
			p.t.Fatalf("the disk differs at %d: %#x, want %#x", i, got[i], image[i])
		}
	}
}

func uri(volume, socket string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", volume, socket)
}

// failedOver protects a disk from east to west, fails over at a checkpoint beyond which the old source has more, and commits.
// It returns what the machine and the old source hold, where the machine finds its disk, and the command that reverses.
func (p *pair) failedOver() (image, beyond []byte, socket string, reverse []string) {
	p.t.Helper()
	p.startVRA(0)
	p.startVRA(1)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	ctx := p.t.Context()
	guest := p.disk(uri("vol1", filepath.Join(p.dir, "east", "vol1.sock")))
	image = make([]byte, reverseSize)
	p.put(guest, image, 0, 24<<20, 0x11)
	p.state(0, api.StateProtected)
	at := p.checkpoint(0, "first")
	beyond = bytes.Clone(image)
	p.put(guest, beyond, 30<<20, 1<<20, 0x22)
	p.checkpoint(0, "second")
	west := p.sites[1].client
	res, err := west.Recovery.Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Group: pairGroup, Id: "one", Checkpoint: at, Note: "a drill"})
	p.must(err)
	socket = res.Failover.View.Volumes[0].Nbd
	machine := p.disk(socket)
	p.shows(machine, image)
	p.put(machine, image, 40<<20, 2<<20, 0x33)
	_, err = west.Recovery.Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{Group: pairGroup})
	p.must(err)
	p.put(machine, image, 44<<20, 1<<20, 0x44)
	p.must(machine.Close())
	p.state(0, api.StateStandby)
	to := p.sites[0].config.Target
	return image, beyond, socket, []string{"reverse", "--to", to.ListenControl + "," + to.ListenData, "--disk", "vol1=" + p.eastDisk(), "--interval", "1s"}
}

func (p *pair) eastDisk() string { return filepath.Join(p.dir, "east", "disks", "vol1.raw") }

// movesBack has the east bring the group up at a last checkpoint from the west, and compares.
func (p *pair) movesBack(socket string, image []byte) {
	p.t.Helper()
	machine := p.disk(socket)
	p.shows(machine, image)
	p.put(machine, image, 50<<20, 1<<20, 0x55)
	p.state(1, api.StateProtected)
	last := p.checkpoint(1, "back")
	res, err := p.sites[0].client.Recovery.Begin(p.t.Context(), &holdfastv1.RecoveryServiceBeginRequest{Group: pairGroup, Id: "two", Checkpoint: last})
	p.must(err)
	p.shows(p.disk(res.Failover.View.Volumes[0].Nbd), image)
}

// TestEndToEndReverse protects from east to west, fails over, writes on, reverses, and goes back: bytes are held at each step, and
// the old disks are the replicas.
func TestEndToEndReverse(t *testing.T) {
	t.Parallel()
	p := newPair(t, reverseSize, "vol1")
	image, _, socket, args := p.failedOver()
	var planned struct{ Steps []struct{ Do string } }
	p.must(p.holdfast(&planned, append(args, "--dry-run")...))
	if len(planned.Steps) != 4 || planned.Steps[0].Do != "adopt" {
		t.Errorf("planned: %+v", planned)
	}
	if err := p.holdfast(nil, args...); err == nil || !strings.Contains(err.Error(), "stop the vra-filter") {
		t.Errorf("beside the old filter: %v", err)
	}
	p.shows(p.disk(socket), image) // it is as it was
	p.stop("east-filter")
	var r report
	p.must(p.holdfast(&r, "failover", "resume", "r1"))
	if r.Verdict == nil || *r.Verdict != "passed" || r.Reason != nil {
		t.Errorf("reversed: %+v", r)
	}
	g := p.state(1, api.StateProtected)
	t.Logf("%d MiB were written since, %d MiB the old source had beyond the checkpoint, %d KiB of the disk were sent", 3, 1, g.PackRawBytesTotal>>10)
	if most := int64(4<<20 + 256<<10); g.PackRawBytesTotal > most {
		t.Errorf("%d bytes were sent, want at most %d", g.PackRawBytesTotal, most)
	}
	p.movesBack(socket, image)
}

// TestEndToEndReverseKilled kills the command and all daemons of both sites at each step of a reversal. Until it has ended the old
// disks are as they were, and the machine's are served or stand as they are; then it ends as one that nobody disturbed.
func TestEndToEndReverseKilled(t *testing.T) {
	t.Parallel()
	p := newPair(t, reverseSize, "vol1")
	image, beyond, socket, args := p.failedOver()
	p.stop("east-filter")
	for _, step := range []string{"adopt", "hand-over", "serve", "sync"} {
		p.killedAt("r1", `"began":{"do":"`+step+`"`, args...)
		for _, site := range p.sites {
			p.kill(site.name)
		}
		p.endFilters()
		old, err := os.ReadFile(p.eastDisk())
		p.must(err)
		if !bytes.Equal(old, beyond) {
			t.Errorf("killed at %s: the old disk is another one", step)
		}
		p.startVRA(0)
		p.startVRA(1)
		args = []string{"failover", "resume", "r1"}
	}
	var r report
	p.must(p.holdfast(&r, args...))
	if r.Verdict == nil || *r.Verdict != "passed" {
		t.Errorf("reversed: %+v", r)
	}
	p.movesBack(socket, image)
}

// killedAt runs the user's command, and kills it once a job's events say so.
func (p *pair) killedAt(id, event string, args ...string) {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(p.bin, "holdfast"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_CONTEXT="+filepath.Join(p.dir, "context.yaml"))
	var said bytes.Buffer
	cmd.Stderr = &said
	p.must(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(30 * time.Second); ; <-tick.C {
		text, _ := os.ReadFile(filepath.Join(p.dir, "jobs", id, "events"))
		if bytes.Contains(text, []byte(event)) {
			break
		}
		select {
		case err := <-ended:
			p.t.Fatalf("%v ended before %s: %v: %s", args, event, err, said.Bytes())
		default:
		}
		if time.Now().After(late) {
			p.t.Fatalf("%v did not come to %s: %s", args, event, said.Bytes())
		}
	}
	cmd.Process.Kill()
	<-ended
}

// failbackVariable has TestFailbackSends run: the size of the disk in GiB. It takes minutes, and some GiB of the temporary folder.
const failbackVariable = "HOLDFAST_FAILBACK_GIB"

// TestFailbackSends tells what a reversal sends after 1 GiB was written on a large disk, beside 256 MiB that the old source
// had beyond the checkpoint elsewhere, over other bytes, and how long its steps take.
func TestFailbackSends(t *testing.T) {
	gib, err := strconv.Atoi(os.Getenv(failbackVariable))
	if err != nil || gib < 8 {
		t.Skipf("only with %s, at least 8", failbackVariable)
	}
	p := newPair(t, int64(gib)<<30, "vol1")
	p.startVRA(0)
	p.startVRA(1)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	ctx, part := t.Context(), make([]byte, 1<<20)
	write := func(c *nbd.Client, from, mib, seed int64) {
		t.Helper()
		rng := rand.NewChaCha8([32]byte{byte(seed)})
		for i := range mib {
			rng.Read(part)
			_, err := c.WriteAt(part, (from+i)<<20)
			p.must(err)
		}
		p.must(c.Flush())
	}
	guest := p.disk(uri("vol1", filepath.Join(p.dir, "east", "vol1.sock")))
	write(guest, 0, 2048, 1)
	p.state(0, api.StateProtected)
	at := p.checkpoint(0, "first")
	write(guest, 0, 256, 2) // over what was there, which has to come back
	p.checkpoint(0, "second")
	west := p.sites[1].client
	res, err := west.Recovery.Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Group: pairGroup, Id: "one", Checkpoint: at})
	p.must(err)
	machine := p.disk(res.Failover.View.Volumes[0].Nbd)
	_, err = west.Recovery.Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{Group: pairGroup})
	p.must(err)
	write(machine, 1536, 1024, 3) // half of it over what was there
	p.must(machine.Close())
	p.stop("east-filter")
	to := p.sites[0].config.Target
	var r struct {
		Steps []struct {
			Do      string
			Seconds float64
			Text    *string
		}
	}
	p.must(p.holdfast(&r, "reverse", "--to", to.ListenControl+","+to.ListenData, "--disk", "vol1="+p.eastDisk()))
	for _, s := range r.Steps {
		t.Logf("%-10s %6.2f s  %s", s.Do, s.Seconds, *s.Text)
	}
	g := p.state(1, api.StateProtected)
	const beyond = 256 << 20
	t.Logf("failback: %d bytes sent, %d of them what the old source had beyond the checkpoint", g.PackRawBytesTotal, beyond) // as make bars-recovery reads it
	if g.PackRawBytesTotal > (1<<30+beyond)*12/10 {
		t.Error("that is more than 1.2 times as much as differs")
	}
}

// TestEndToEndRemoveReversed ends the protection of a group that was reversed: its old disks stay where they are, as they were at its last
// checkpoint; the machine goes on; no restart brings it back, and its name is free for another group of the same disks.
func TestEndToEndRemoveReversed(t *testing.T) {
	t.Parallel()
	p := newPair(t, reverseSize, "vol1")
	image, _, socket, args := p.failedOver()
	p.stop("east-filter")
	p.must(p.holdfast(nil, args...))
	p.state(1, api.StateProtected)
	machine := p.disk(socket)
	p.put(machine, image, 52<<20, 1<<20, 0x66)
	p.checkpoint(1, "last")
	if err := p.holdfast(nil, "group", "remove", pairGroup, "--yes"); err == nil { // the roles in the context are those of before
		t.Error("a group was removed at the site that gave its disks away")
	}
	p.context(1)
	p.must(p.holdfast(nil, "group", "remove", pairGroup, "--dry-run"))
	var r struct{ Disks []struct{ Name, Path string } }
	p.must(p.holdfast(&r, "group", "remove", pairGroup, "--keep-replica", "--yes"))
	if len(r.Disks) != 1 || r.Disks[0].Path != p.eastDisk() {
		t.Errorf("kept are %+v, want %s", r.Disks, p.eastDisk())
	}
	if kept, err := os.ReadFile(p.eastDisk()); err != nil || !bytes.Equal(kept, image) {
		t.Errorf("the old disk is not what the machine had written (%v)", err)
	}
	p.state(1, api.StateRemoved)
	p.put(machine, image, 53<<20, 4096, 0x67)
	for i := range p.sites {
		p.kill(p.sites[i].name)
		p.startVRA(i)
	}
	p.state(1, api.StateRemoved)
	p.put(machine, image, 54<<20, 4096, 0x68)
	p.must(machine.Close())

	// Another group of that name, from the east.
	p.kill(p.sites[0].name)
	g := &p.sites[0].config.Source.Groups[0]
	g.ID, g.Stream, g.Lineage = 0x5555, 0x6666, 0x7777
	p.write(p.sites[0].file, p.sites[0].config)
	name := filepath.Join(p.dir, "east", "filter.yaml")
	f, err := config.LoadFilter(name)
	p.must(err)
	f.Group.ID = g.ID
	p.write(name, f)
	p.startVRA(0)
	p.start("east-filter", "vra-filter", name)
	p.state(0, api.StateProtected)
	p.checkpoint(0, "anew")
}
