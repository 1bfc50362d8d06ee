package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// plain reads at random places of the disk that a machine has moved onto, beside that machine, and of the protected disk's own file.
func (b *bench) plain() error {
	if err := b.up(1, b.size); err != nil {
		return err
	}
	defer b.down() // its group is protected no more
	disk, err := b.disk()
	if err != nil {
		return err
	}
	file, err := b.machines()
	if err != nil {
		return err
	}
	var r report
	if err := b.lab.JSON(b.Context, &r, "failover", "live", "--machines", file, "--override-reason", "measured"); err != nil {
		return err
	}
	for _, word := range []string{"commit", "plain"} {
		if err := b.lab.JSON(b.Context, nil, "failover", word, r.ID); err != nil {
			return err
		}
	}
	target, err := b.dial(api.RoleTarget)
	if err != nil {
		return err
	}
	defer target.Close()
	res, err := target.Recovery.Get(b.Context, &holdfastv1.RecoveryServiceGetRequest{})
	if err != nil {
		return err
	}
	if f := res.Failover; f.State != api.FailoverOnDisks || len(f.Disks) != 1 {
		return fmt.Errorf("the machine is not on its disk: the failover is %s", f.State)
	}
	var ours, peer float64
	for i := range b.Pairs {
		foreign, err := b.Pair(i, b.ofFile(&ours, res.Failover.Disks[0].Path), b.ofFile(&peer, disk))
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "plain-qd16", Value: ours / peer, Ours: ours, Peer: peer, OursUnit: "IOPS", Foreign: foreign})
	}
	return nil
}

// failbackGiB is how large the disk is of which what changed is sent back.
const failbackGiB = 20

// sent is what the story of a failback says of it.
var sent = regexp.MustCompile(`failback: (\d+) bytes sent, (\d+) of them what the old source had beyond the checkpoint`)

// failback has the story of a failback told once, on the disk to measure: what it sends is no matter of chance.
func (b *bench) failback() error {
	cmd := exec.CommandContext(b.Context, "go", "test", "-tags", "e2e", "-count", "1", "-timeout", "20m", "-run", "^TestFailbackSends$", "-v", "./bench/scenario")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", fmt.Sprintf("HOLDFAST_FAILBACK_GIB=%d", failbackGiB), "TMPDIR="+b.Dir)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said))
	}
	found := sent.FindSubmatch(said)
	if found == nil {
		return fmt.Errorf("the story does not say what was sent: %s", bytes.TrimSpace(said))
	}
	all, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		return err
	}
	beyond, err := strconv.ParseFloat(string(found[2]), 64)
	if err != nil {
		return err
	}
	const gib = 1 << 30
	b.Sample(bars.Sample{Row: "failback", Value: (all - beyond) / gib, Ours: (all - beyond) / gib, OursUnit: "GiB",
		Note: fmt.Sprintf("and %.2f GiB that the old source had beyond the checkpoint", beyond/gib)})
	return nil
}
