package failover

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Machines are those of a file that are wanted, all when only is empty, in the order in which a
// job of that kind starts them.
func Machines(file *config.Machines, only []string, kind recovery.Kind) ([]recovery.Machine, error) {
	var all []recovery.Machine
	var names []string
	for _, m := range file.Machines {
		names = append(names, m.Name)
		if len(only) == 0 || slices.Contains(only, m.Name) {
			all = append(all, machine(m, kind))
		}
	}
	for _, name := range only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("no machine %q: those of the file are %s", name, strings.Join(names, ", "))
		}
	}
	recovery.Order(all)
	return all, nil
}

func machine(m config.Machine, kind recovery.Kind) recovery.Machine {
	def := hypervisor.Machine{Name: m.Name, MemoryBytes: int64(m.Memory), CPUs: m.CPUs, Firmware: hypervisor.Firmware(m.Firmware), VhostUser: m.Front != config.FrontNBD,
		Disks: []hypervisor.Disk{}, Networks: []hypervisor.Network{}, Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.Cmdline, Extra: m.QEMU}
	for _, d := range m.Disks {
		def.Disks = append(def.Disks, hypervisor.Disk{Volume: d})
	}
	for _, n := range m.Networks {
		net := hypervisor.Network{MAC: n.MAC}
		if n.Live != "" && (kind.Fences() || invariant.Planted("failover/test-reaches-out")) {
			net.Bridge = n.Live
		} else {
			net.Forward = n.Forward
		}
		def.Networks = append(def.Networks, net)
	}
	return recovery.Machine{Machine: def, Boot: m.Boot, Delay: m.Delay.D(), Before: script(m.Before), After: script(m.After), Wait: m.Wait, WaitTime: m.WaitTime.D(),
		Source: recovery.Source{QMP: m.Source.QMP, Libvirt: m.Source.Libvirt, Domain: m.Source.Domain, Time: m.Source.Time.D()}}
}

// Fronts has machines reach their disks over NBD that could not share their memory where they are to run: that they run counts.
func Fronts(ctx context.Context, h hypervisor.Hypervisor, machines []recovery.Machine) {
	shares := slices.ContainsFunc(machines, func(m recovery.Machine) bool { return m.VhostUser })
	if !shares {
		return
	}
	err := h.Shares(ctx)
	for i := range machines {
		if m := &machines[i]; err != nil && m.VhostUser {
			m.VhostUser, m.OverNBD = false, err.Error()
		}
	}
}

func script(s config.Script) recovery.Script {
	return recovery.Script{Command: s.Command, Time: s.Time.D()}
}
