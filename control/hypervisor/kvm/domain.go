package kvm

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

// A domain as libvirt describes it, as far as machines have it.
type (
	domainXML struct {
		XMLName   xml.Name `xml:"domain"`
		Type      string   `xml:"type,attr"`
		QEMU      string   `xml:"xmlns:qemu,attr"`
		Name      string   `xml:"name"`
		UUID      string   `xml:"uuid"`
		Memory    sizeXML  `xml:"memory"`
		Backing   *backing `xml:"memoryBacking"`
		CPUs      int      `xml:"vcpu"`
		OS        osXML    `xml:"os"`
		ACPI      struct{} `xml:"features>acpi"`
		CPU       modeXML  `xml:"cpu"`
		Clock     clockXML `xml:"clock"`
		Crash     string   `xml:"on_crash"`
		Devices   devices  `xml:"devices"`
		Arguments []argXML `xml:"qemu:commandline>qemu:arg"`
	}
	sizeXML struct {
		Unit  string `xml:"unit,attr"`
		Value int64  `xml:",chardata"`
	}
	backing struct {
		Source typeXML `xml:"source"`
		Access modeXML `xml:"access"`
	}
	modeXML struct {
		Mode string `xml:"mode,attr"`
	}
	clockXML struct {
		Offset string `xml:"offset,attr"`
	}
	osXML struct {
		Firmware string  `xml:"firmware,attr,omitempty"`
		Type     machine `xml:"type"`
		Kernel   string  `xml:"kernel,omitempty"`
		Initrd   string  `xml:"initrd,omitempty"`
		Cmdline  string  `xml:"cmdline,omitempty"`
	}
	machine struct {
		Machine string `xml:"machine,attr"`
		Value   string `xml:",chardata"`
	}
	devices struct {
		Disks      []diskXML      `xml:"disk"`
		Interfaces []interfaceXML `xml:"interface"`
		USB        controllerXML  `xml:"controller"`
		Serial     serialXML      `xml:"serial"`
		Video      videoXML       `xml:"video"`
		Balloon    modelXML       `xml:"memballoon"`
	}
	// A disk over vhost-user.
	diskXML struct {
		Type   string     `xml:"type,attr"`
		Device string     `xml:"device,attr"`
		Driver driverXML  `xml:"driver"`
		Source socketXML  `xml:"source"`
		Target targetXML  `xml:"target"`
		Boot   orderXML   `xml:"boot"`
		Place  addressXML `xml:"address"`
	}
	driverXML struct {
		Name   string `xml:"name,attr"`
		Type   string `xml:"type,attr"`
		Queues int    `xml:"queues,attr"`
	}
	socketXML struct {
		Type      string       `xml:"type,attr"`
		Path      string       `xml:"path,attr"`
		Reconnect reconnectXML `xml:"reconnect"`
	}
	reconnectXML struct {
		Enabled string `xml:"enabled,attr"`
		Timeout int    `xml:"timeout,attr"` // seconds
	}
	targetXML struct {
		Name string `xml:"dev,attr"`
		Bus  string `xml:"bus,attr"`
	}
	orderXML struct {
		Order int `xml:"order,attr"`
	}
	addressXML struct {
		Type string `xml:"type,attr"`
		Bus  string `xml:"bus,attr"`
		Slot string `xml:"slot,attr"`
	}
	interfaceXML struct {
		Type   string    `xml:"type,attr"`
		Source bridgeXML `xml:"source"`
		MAC    *macXML   `xml:"mac"`
		Model  typeXML   `xml:"model"`
	}
	bridgeXML struct {
		Bridge string `xml:"bridge,attr"`
	}
	macXML struct {
		Address string `xml:"address,attr"`
	}
	typeXML struct {
		Type string `xml:"type,attr"`
	}
	controllerXML struct {
		Type  string `xml:"type,attr"`
		Model string `xml:"model,attr"`
	}
	serialXML struct {
		Type   string  `xml:"type,attr"`
		Source fileXML `xml:"source"`
	}
	fileXML struct {
		Path   string `xml:"path,attr"`
		Append string `xml:"append,attr"`
	}
	videoXML struct {
		Model typeXML `xml:"model"`
	}
	modelXML struct {
		Model string `xml:"model,attr"`
	}
	argXML struct {
		Value string `xml:"value,attr"`
	}
)

// xml describes a machine to libvirt. It has what its definition names and nothing that libvirt adds by
// itself, as far as that can be said.
func (l *Libvirt) xml(m hypervisor.Machine) (string, error) {
	if len(m.Extra) > 0 {
		return "", errors.New("options of QEMU's are for the driver of plain QEMU: leave qemu away")
	}
	if _, err := (&Local{}).arguments(plain(m)); err != nil {
		return "", err // what is wrong for one driver is for the other
	}
	id := l.uuid(m.Name)
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	d := domainXML{Type: "qemu", QEMU: "http://libvirt.org/schemas/domain/qemu/1.0", Name: m.Name + "-" + uuid[:8], UUID: uuid, Memory: sizeXML{"b", m.MemoryBytes}, CPUs: m.CPUs,
		OS:  osXML{Type: machine{"pc", "hvm"}, Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.Cmdline},
		CPU: modeXML{"maximum"}, Clock: clockXML{"utc"}, Crash: "preserve",
		Devices: devices{USB: controllerXML{"usb", "none"}, Video: videoXML{typeXML{"vga"}}, Balloon: modelXML{"none"},
			Serial: serialXML{"file", fileXML{filepath.Join(l.dir, m.Name, serialName), "on"}}}}
	if l.kvm {
		d.Type, d.CPU.Mode = "kvm", "host-passthrough"
	}
	if m.Firmware == hypervisor.UEFI {
		d.OS.Firmware = "efi"
	}
	if m.VhostUser { // libvirt wants it said for disks over vhost-user
		d.Backing = &backing{typeXML{"memfd"}, modeXML{"shared"}}
	}
	// libvirt's own NBD disks fail at once when their server restarts (they know no reconnect-delay), and
	// its own user network reaches whatever this host does: both go to QEMU in its own words. Disks over vhost-user are libvirt's own.
	place := lastPlace + 1 - len(m.Disks)
	for i, disk := range m.Disks {
		if overVhost(disk) {
			d.vhostDisk(i, disk, place+i)
			continue
		}
		args, err := diskArguments(i, disk)
		if err != nil {
			return "", err
		}
		d.arguments(args, place+i)
	}
	for _, n := range m.Networks {
		if n.Bridge == "" {
			place--
		}
	}
	first := place
	for i, n := range m.Networks {
		if n.Bridge == "" {
			args, err := networkArguments(i, n)
			if err != nil {
				return "", err
			}
			d.arguments(args, place)
			place++
			continue
		}
		card := interfaceXML{Type: "bridge", Source: bridgeXML{n.Bridge}, Model: typeXML{"virtio"}}
		if a, err := net.ParseMAC(n.MAC); err == nil {
			card.MAC = &macXML{a.String()}
		}
		d.Devices.Interfaces = append(d.Devices.Interfaces, card)
	}
	if first-len(d.Devices.Interfaces) < firstPlace {
		return "", fmt.Errorf("%d disks and networks: under libvirt a machine has at most %d", len(m.Disks)+len(m.Networks), lastPlace-firstPlace+1)
	}
	text, err := xml.MarshalIndent(d, "", "  ")
	return string(text), err
}

// plain is a definition without what only the host of the machine can tell.
func plain(m hypervisor.Machine) hypervisor.Machine {
	m.Firmware = hypervisor.BIOS
	return m
}

// Places on the machine's PCI bus: libvirt gives out those from below, and devices that it is not to place get those up to the last, in the guest's order: isolated
// networks, and then disks.
const (
	lastPlace  = 0x1f
	firstPlace = 0x08
)

// slot names a place.
func slot(place int) string { return fmt.Sprintf("0x%x", place) }

// vhostDisk adds a disk over vhost-user, where the same disk would be on the bus if it were served otherwise: there the guest finds it when the machine
// is started on the file. One that is served no more is asked for each second, for as long as it takes.
func (d *domainXML) vhostDisk(i int, disk hypervisor.Disk, place int) {
	d.Devices.Disks = append(d.Devices.Disks, diskXML{Type: "vhostuser", Device: "disk", Driver: driverXML{"qemu", "raw", 1},
		Source: socketXML{"unix", disk.VhostUser, reconnectXML{"yes", 1}},
		Target: targetXML{"vd" + string(rune('a'+i)), "virtio"}, Boot: orderXML{i + 1}, Place: addressXML{"pci", "0x00", slot(place)}})
}

// arguments adds some of a device to QEMU's command line, which is at a place.
func (d *domainXML) arguments(args []string, place int) {
	for i, a := range args {
		if i > 0 && args[i-1] == "-device" {
			if rest, ok := strings.CutPrefix(a, "{"); ok {
				a = `{"bus":"pci.0","addr":"` + slot(place) + `",` + rest
			} else {
				a += ",bus=pci.0,addr=" + slot(place)
			}
		}
		d.Arguments = append(d.Arguments, argXML{a})
	}
}
