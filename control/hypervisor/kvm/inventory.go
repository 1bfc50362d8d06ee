package kvm

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

var _ hypervisor.Inventory = (*Libvirt)(nil)

// found is a domain as libvirt describes it, as far as it is told.
type found struct {
	OS struct {
		Firmware string `xml:"firmware,attr"`
		Loader   struct {
			Type string `xml:"type,attr"`
		} `xml:"loader"`
	} `xml:"os"`
	Memory struct {
		KiB int64 `xml:",chardata"` // libvirt always says KiB
	} `xml:"memory"`
	CPUs    int `xml:"vcpu"`
	Devices struct {
		Disks []struct {
			Device string `xml:"device,attr"`
			Driver struct {
				Type string `xml:"type,attr"`
			} `xml:"driver"`
			Source struct {
				File     string `xml:"file,attr"`
				Dev      string `xml:"dev,attr"`
				Path     string `xml:"path,attr"` // the socket of a vhost-user server
				Protocol string `xml:"protocol,attr"`
				Name     string `xml:"name,attr"`
				Host     struct {
					Socket string `xml:"socket,attr"`
				} `xml:"host"`
				Pool   string `xml:"pool,attr"`
				Volume string `xml:"volume,attr"`
			} `xml:"source"`
			Target struct {
				Dev string `xml:"dev,attr"`
			} `xml:"target"`
		} `xml:"disk"`
		Interfaces []struct {
			Type   string `xml:"type,attr"`
			Source struct {
				Bridge  string `xml:"bridge,attr"`
				Network string `xml:"network,attr"`
			} `xml:"source"`
			MAC struct {
				Address string `xml:"address,attr"`
			} `xml:"mac"`
		} `xml:"interface"`
	} `xml:"devices"`
}

// Inventory lists all domains of the host, whoever defined them, with disks and networks as they are
// defined. One that goes while it is asked about is left out.
func (l *Libvirt) Inventory(ctx context.Context) (all []hypervisor.Found, err error) {
	err = l.with(ctx, func(c *libvirt.Libvirt) error {
		domains, _, err := c.ConnectListAllDomains(1, 0)
		if err != nil {
			return err
		}
		for _, d := range domains {
			state, err := stateOf(c, d)
			var text string
			if err == nil {
				text, err = c.DomainGetXMLDesc(d, 0)
			}
			if libvirt.IsNotFound(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("domain %s: %w", d.Name, err)
			}
			f, err := parseFound([]byte(text))
			if err != nil {
				return fmt.Errorf("domain %s: %w", d.Name, err)
			}
			f.Name, f.State = d.Name, state
			all = append(all, f)
		}
		return nil
	})
	return all, err
}

// ExportURI names an export at a unix socket.
func ExportURI(export, socket string) string {
	path := url.URL{Path: "/" + export}
	return "nbd+unix://" + path.EscapedPath() + "?socket=" + strings.ReplaceAll(url.QueryEscape(socket), "%2F", "/")
}

func parseFound(text []byte) (f hypervisor.Found, err error) {
	var x found
	if err := xml.Unmarshal(text, &x); err != nil {
		return f, err
	}
	f = hypervisor.Found{MemoryBytes: x.Memory.KiB << 10, CPUs: x.CPUs, Firmware: hypervisor.BIOS}
	if x.OS.Firmware == "efi" || x.OS.Loader.Type == "pflash" {
		f.Firmware = hypervisor.UEFI
	}
	for _, d := range x.Devices.Disks {
		if d.Device != "disk" && d.Device != "" {
			continue // a CD or floppy
		}
		disk := hypervisor.FoundDisk{Name: d.Target.Dev, Path: d.Source.File + d.Source.Dev + d.Source.Path, Format: d.Driver.Type}
		switch {
		case d.Source.Protocol == "nbd" && d.Source.Host.Socket != "":
			disk.Path = ExportURI(d.Source.Name, d.Source.Host.Socket)
		case d.Source.Protocol != "":
			disk.Path = d.Source.Protocol + ":" + d.Source.Name
		case d.Source.Pool != "":
			disk.Path = "pool " + d.Source.Pool + ": " + d.Source.Volume
		}
		f.Disks = append(f.Disks, disk)
	}
	for _, i := range x.Devices.Interfaces {
		f.Networks = append(f.Networks, hypervisor.FoundNetwork{MAC: i.MAC.Address, Kind: i.Type, Name: i.Source.Bridge + i.Source.Network})
	}
	return f, nil
}
