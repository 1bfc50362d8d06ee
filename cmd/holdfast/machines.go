package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/spf13/cobra"
)

func (a *app) machinesCommand() *cobra.Command {
	return parent("machines", "See what machines a libvirt has, and write the file by which they are recovered",
		`Machines asks a libvirt of this host which machines it has, and makes of those whose disks
are volumes of the group the file that failover, move and verify read; see holdfast failover.`,
		a.machinesList(), a.machinesWrite())
}

// libvirtFlag adds --libvirt.
func libvirtFlag(cmd *cobra.Command, uri *string) {
	cmd.Flags().StringVar(uri, "libvirt", kvm.LibvirtURI, "`URI` of the libvirt, as in qemu+unix:///system?socket=PATH")
}

// inventory asks the libvirt that a flag names.
func inventory(ctx context.Context, uri string) (config.Hypervisor, []hypervisor.Found, error) {
	where, err := config.ParseHypervisor(uri)
	if err == nil && !where.Libvirt() {
		err = errors.New("plain QEMU does not know what machines there are")
	}
	if err != nil {
		return where, nil, usagef("--libvirt: %w", err)
	}
	l, err := kvm.NewLibvirt(where.Socket, where.URI, filepath.Join(os.TempDir(), "holdfast-none"))
	if err != nil {
		return where, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	all, err := l.Inventory(ctx)
	return where, all, err
}

func (a *app) machinesList() *cobra.Command {
	var uri string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the machines of a libvirt, with disks and networks",
		Long: `List shows all domains of a libvirt, whoever defined them: also those that a failover runs. A disk that is
served by a vra-filter is shown by its socket.`,
		Example: "  holdfast machines list\n  holdfast machines list --libvirt 'qemu+unix:///system?socket=/run/libvirt/virtqemud-sock' -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, all, err := inventory(cmd.Context(), uri)
			if err != nil {
				return err
			}
			if all == nil {
				all = []hypervisor.Found{}
			}
			var rows [][]string
			for _, f := range all {
				var disks, nets []string
				for _, d := range f.Disks {
					disks = append(disks, d.Name+"="+d.Path)
				}
				for _, n := range f.Networks {
					nets = append(nets, strings.TrimSpace(n.Kind+" "+n.Name))
				}
				rows = append(rows, []string{f.Name, string(f.State), bytesText(f.MemoryBytes), fmt.Sprint(f.CPUs), string(f.Firmware), listOrHyphen(disks), listOrHyphen(nets)})
			}
			return a.print(all, "MACHINE STATE MEMORY CPUS FIRMWARE DISKS NETWORKS", rows)
		},
	}
	libvirtFlag(cmd, &uri)
	return cmd
}

func listOrHyphen(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// writtenMachine is a machine of a file that was written; its JSON is kept for ever.
type writtenMachine struct {
	Name    string   `json:"name"`
	Domain  string   `json:"domain"`
	Volumes []string `json:"volumes"`
}

func (a *app) machinesWrite() *cobra.Command {
	var uri, on, out string
	var filters []string
	cmd := &cobra.Command{
		Use:   "write DOMAIN...",
		Short: "Write the file of a group's machines from what libvirt knows of them",
		Long: `Write makes the machines' file of domains of a libvirt: name, memory, processors, firmware, networks,
which of the group's volumes are their disks, and the domain as what a failover or move stops. A disk
is found by the file or device that a vra-filter serves, or by its socket; what no filter serves
is refused, since a machine would come up without it.

What libvirt cannot know is for you to add: in which order machines start, what they are waited
for, scripts, and on which bridge of the second site they are to be (live).`,
		Example: "  holdfast machines write web1 db1 --out machines.yaml\n  holdfast machines write web1 --filter /etc/holdfast/vra-filter.yaml --on qemu:///system --out machines.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want the names of domains: see holdfast machines list")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("--out is missing: name the file to write")
			}
			target, err := config.ParseHypervisor(on)
			if err != nil {
				return usagef("--on: %w", err)
			}
			served, err := a.served(filters)
			if err != nil {
				return err
			}
			where, all, err := inventory(cmd.Context(), uri)
			if err != nil {
				return err
			}
			file, written, err := machinesOf(all, args, served)
			if err != nil {
				return err
			}
			file.Hypervisor = target
			for i := range file.Machines {
				file.Machines[i].Source.Libvirt = where
			}
			if err := writeMachines(out, file); err != nil {
				return err
			}
			var rows [][]string
			for _, w := range written {
				rows = append(rows, []string{w.Name, w.Domain, listOrHyphen(w.Volumes)})
			}
			return a.print(written, "MACHINE DOMAIN VOLUMES", rows)
		},
	}
	libvirtFlag(cmd, &uri)
	cmd.Flags().StringVar(&on, "on", "qemu", "what runs them at the second site: qemu, or the `URI` of a libvirt there")
	cmd.Flags().StringVar(&out, "out", "", "`FILE` to write; one that is there stays as it is")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "`FILE` of a vra-filter of this host; may be repeated; by default those of the context")
	cmd.MarkFlagFilename("filter", "yaml")
	cmd.MarkFlagFilename("out", "yaml")
	return cmd
}

// machinesOf makes machines of the domains of these names.
func machinesOf(all []hypervisor.Found, names []string, served []servedVolume) (*config.Machines, []writtenMachine, error) {
	file := &config.Machines{}
	var written []writtenMachine
	var wrong []error
	byName, have := map[string]hypervisor.Found{}, []string{}
	for _, f := range all {
		byName[f.Name] = f
		have = append(have, f.Name)
	}
	for _, name := range names {
		f, ok := byName[name]
		if !ok {
			wrong = append(wrong, fmt.Errorf("libvirt has no domain %q: it has %s", name, listOrHyphen(have)))
			continue
		}
		m := config.Machine{Name: f.Name, Memory: config.Size((f.MemoryBytes + 1<<20 - 1) >> 20 << 20), CPUs: f.CPUs, Firmware: string(f.Firmware), Source: config.MachineSource{Domain: f.Name}}
		for _, d := range f.Disks {
			volume, err := volumeOf(d, served)
			if err != nil {
				wrong = append(wrong, fmt.Errorf("domain %s: disk %s: %w", name, d.Name, err))
				continue
			}
			m.Disks = append(m.Disks, volume)
		}
		for _, n := range f.Networks {
			m.Networks = append(m.Networks, config.MachineNetwork{MAC: n.MAC})
		}
		file.Machines = append(file.Machines, m)
		written = append(written, writtenMachine{m.Name, f.Name, m.Disks})
	}
	return file, written, errors.Join(wrong...)
}

// volumeOf is the volume that a disk of a domain is.
func volumeOf(d hypervisor.FoundDisk, served []servedVolume) (string, error) {
	export, err := nbd.ParseURI(d.Path)
	for _, v := range served {
		switch {
		case d.Path == v.Path || sameFile(d.Path, v.Path): // past its filter still
			return v.Name, nil
		case v.Socket != "" && err == nil && export.Network == "unix" && export.Address == v.Socket && export.Export == v.Name:
			return v.Name, nil
		case v.vhostUser != "" && d.Path == v.vhostUser:
			return v.Name, nil
		}
	}
	return "", fmt.Errorf("no filter serves %s: name its file with --filter, or protect it first", d.Path)
}

// writeMachines writes the file, unless there is one.
func writeMachines(path string, c *config.Machines) error {
	written := *c
	written.Machines = append([]config.Machine{}, c.Machines...) // defaults are for whoever reads it
	if err := c.Validate(); err != nil {
		return err
	}
	text, err := config.Marshal(&written)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there, and stays as it is: name another --out", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
