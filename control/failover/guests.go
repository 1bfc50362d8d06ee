package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// How long connections of a guest that is off may take to be gone, and how long a monitor may take to say that its QEMU stands there shut down.
const (
	partLimit = 5 * time.Second
	shutLimit = time.Second
)

// connected names the volumes among these that guests are connected to at the source. One that does not answer, or whose filters do not tell, names none.
func (r *Runner) connected(ctx context.Context, group string, volumes []string) (names []string) {
	if r.Source == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	groups, err := groupsOf(ctx, r.Source, group, api.RoleSource)
	if err != nil {
		return nil
	}
	for _, v := range groups[0].GetVolumes() {
		if v.GetConnections() > 0 && slices.Contains(volumes, v.GetName()) {
			names = append(names, v.GetName())
		}
	}
	return names
}

// volumesOf are the volumes that a machine has as disks.
func volumesOf(m *recovery.Machine) (names []string) {
	for _, d := range m.Disks {
		names = append(names, d.Volume)
	}
	return names
}

// parted makes sure, as far as the source tells, that no guest uses the disks of the machines that are to be off: what was stopped may be
// another machine than the one that has them.
func (c *carrier) parted(ctx context.Context) error {
	p := c.job.Plan
	if p.Override != "" || c.Source == nil || invariant.Planted("failover/guests-unseen") {
		return nil
	}
	var volumes []string
	for _, m := range p.Machines {
		if m.Source.QMP == "" || !standsShut(ctx, m.Source.QMP) {
			volumes = append(volumes, volumesOf(&m)...)
		}
	}
	limit, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	for rest := againFirst; ; rest = min(2*rest, againMost) {
		names := c.connected(ctx, p.Group, volumes)
		if len(names) == 0 {
			return nil
		}
		if wait.For(limit, rest) != nil {
			return errors.Join(ctx.Err(), stillUsed(names))
		}
	}
}

// standsShut says whether a QEMU is there whose guest is off: it keeps its disks open.
func standsShut(ctx context.Context, qmp string) bool {
	ctx, cancel := context.WithTimeout(ctx, shutLimit)
	defer cancel()
	mon, err := kvm.Dial(ctx, qmp)
	if err != nil {
		return false
	}
	defer mon.Close()
	return kvm.Ended(ctx, mon) == nil
}

// stillUsed says that the machines that were stopped are not those that have the volumes.
func stillUsed(names []string) error {
	return fmt.Errorf("a guest is connected to %s at the source still, though what source names in the machines' file is off: %s", listed(names), nameIt)
}

const nameIt = "name there the machine that has these disks (see holdfast machines list at the source; after a reversal it is the one that the failover made, NAME-8hex), or write the file anew with holdfast machines write"

func listed(names []string) string {
	text := fmt.Sprintf("volume %s", names[0])
	for _, n := range names[1:] {
		text += ", " + n
	}
	return text
}

// checkUsed says that a guest uses the disks of a machine whose source is off: it is another one than is named.
func (r *Runner) checkUsed(ctx context.Context, p *recovery.Plan, m *recovery.Machine) error {
	names := r.connected(ctx, p.Group, volumesOf(m))
	if len(names) == 0 || invariant.Planted("failover/guests-unforeseen") {
		return nil
	}
	return fmt.Errorf("machine %s: its source, domain %s, is off, and yet a guest is connected to %s at the source: %s", m.Name, m.Source.Domain, listed(names), nameIt)
}
