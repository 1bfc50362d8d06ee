package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// monitor is QEMU's monitor of a domain that runs, by way of libvirt, which keeps that to itself: each command goes by a connection of its own. Disks that
// change in QEMU are its own there (see xml), so that libvirt knows of nothing that changes with them.
func (l *Libvirt) monitor(ctx context.Context, name string) (*Monitor, error) {
	m := &Monitor{pass: func(ctx context.Context, text string) (answer string, err error) {
		err = l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
			answer, err = c.QEMUDomainMonitorCommand(d, text, 0)
			return err
		})
		return answer, err
	}}
	var v struct{ QEMU struct{ Major, Minor int } }
	err := m.Do(ctx, Command{Execute: "query-version"}, &v)
	m.Version = [2]int{v.QEMU.Major, v.QEMU.Minor}
	return m, err
}

// passed has somebody else put a command to QEMU.
func (m *Monitor) passed(ctx context.Context, c Command) (g message, err error) {
	text, err := json.Marshal(c)
	if err != nil {
		return g, err
	}
	answer, err := m.pass(ctx, string(text))
	if err != nil {
		return g, err
	}
	var own struct { // the ID is libvirt's
		Return json.RawMessage
		Error  *Refused
	}
	if err = json.Unmarshal([]byte(answer), &own); err == nil && own.Return == nil && own.Error == nil {
		err = fmt.Errorf("it answers %.80q", answer)
	}
	return message{Return: own.Return, Error: own.Error}, err
}

// MaySetDisk says that a domain must be there, and not have been saved: it would go on with the disks that it had then.
func (l *Libvirt) MaySetDisk(ctx context.Context, name string) error {
	return l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
		saved, err := c.DomainHasManagedSaveImage(d, 0)
		if err == nil && saved != 0 {
			err = errors.New("it was saved, and would go on with the disks that it had then: start it, or give up what was saved (virsh managedsave-remove)")
		}
		return err
	})
}

// SetDisk moves a disk of a domain: in QEMU first, where it runs, and has it not over vhost-user, and then in what libvirt starts it from, and in its definition.
func (l *Libvirt) SetDisk(ctx context.Context, name string, d hypervisor.Disk) error {
	err := l.setDisk(ctx, name, d)
	if err != nil {
		err = fmt.Errorf("machine %s: disk %s: %w", name, d.Volume, err)
	}
	return err
}

func (l *Libvirt) setDisk(ctx context.Context, name string, d hypervisor.Disk) error {
	dir, m, err := l.files().definition(name)
	if err != nil {
		return err
	}
	i, same, err := diskOf(m, d)
	if err != nil {
		return err
	}
	state, err := l.State(ctx, name)
	shared := m.VhostUser && d.VhostUser != ""
	switch {
	case err != nil:
		return err
	case state == hypervisor.Absent:
		return hypervisor.ErrAbsent
	case state != hypervisor.Off:
		mon, err := l.monitor(ctx, name)
		if err == nil {
			shared, err = setRunning(ctx, mon, m, i, d, same)
		}
		if err != nil && !same {
			err = fmt.Errorf("while it runs: %w (it can do so while it is off, too)", err)
		}
		if err != nil || invariant.Planted("kvm/domain-starts-where-it-was") {
			return err
		}
	}
	if same {
		return nil
	}
	m.Disks[i] = reached(d, shared)
	return l.put(ctx, dir, m)
}

// diskOf finds the disk of a machine that is to be another one, and says whether its definition says so already.
func diskOf(m hypervisor.Machine, d hypervisor.Disk) (i int, same bool, err error) {
	for i, have := range m.Disks {
		if have.Volume == d.Volume {
			return i, have.File == d.File && have.NBD == d.NBD, nil
		}
	}
	return -1, false, errors.New("it has none of that volume")
}

// isOn says that a QEMU which runs does not have a disk where its machine's definition says: it was started, or saved, before that was changed.
func isOn(ctx context.Context, mon *Monitor, i int, d hypervisor.Disk) error {
	g, err := Look(ctx, mon)
	if err != nil {
		return err
	}
	device := "vd" + strconv.Itoa(i)
	k := slices.IndexFunc(g.Disks, func(have Disk) bool { return have.ID() == device })
	if k < 0 {
		return fmt.Errorf("the guest has no disk %q", device)
	}
	root, on := &g.Disks[k].Root, false
	if d.File != "" {
		v, err := mon.Disk(Volume{Name: d.Volume, Path: d.File})
		if err != nil {
			return err
		}
		on = root.Driver == "raw" && v.Same(root.rawFile())
	} else {
		served, err := servedAs(d)
		if err != nil {
			return err
		}
		on = served(root)
	}
	if !on {
		return fmt.Errorf("its definition says where it is to be, and it runs on %s %s: it was started before; start it anew", root.Driver, root.File)
	}
	return nil
}
