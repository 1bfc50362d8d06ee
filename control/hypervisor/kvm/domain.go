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
		CPUs      int      `xml:"vcpu"`
		OS        osXML    `xml:"os"`
		ACPI      struct{} `xml:"features>acpi"`
		CPU       modeXML  `xml:"cpu"`
		Clock     clockXML `xml:"clock"`
		Crash     string   `xml:"on_crash"`
		Devices   devices  `xml:"devices"`
		Arguments []argXML `xml:"qemu:commandline>qemu:arg"`

		placed int // devices of Arguments
	}
	sizeXML struct {
		Unit  string `xml:"unit,attr"`
		Value int64  `xml:",chardata"`
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
		Interfaces []interfaceXML `xml:"interface"`
		USB        controllerXML  `xml:"controller"`
		Serial     serialXML      `xml:"serial"`
		Video      videoXML       `xml:"video"`
		Balloon    modelXML       `xml:"memballoon"`
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
	if m.VhostUser {
		return "", errors.New("disks over vhost-user are for the driver of plain QEMU: leave front away")
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
	// libvirt's own NBD disks fail at once when their server restarts (they know no reconnect-delay), and
	// its own user network reaches whatever this host does: both go to QEMU in its own words.
	for i, disk := range m.Disks {
		args, err := diskArguments(i, disk)
		if err != nil {
			return "", err
		}
		d.arguments(args)
	}
	for i, n := range m.Networks {
		if n.Bridge == "" {
			args, err := networkArguments(i, n)
			if err != nil {
				return "", err
			}
			d.arguments(args)
			continue
		}
		card := interfaceXML{Type: "bridge", Source: bridgeXML{n.Bridge}, Model: typeXML{"virtio"}}
		if a, err := net.ParseMAC(n.MAC); err == nil {
			card.MAC = &macXML{a.String()}
		}
		d.Devices.Interfaces = append(d.Devices.Interfaces, card)
	}
	if most := lastPlace - firstPlace + 1; d.placed+len(d.Devices.Interfaces) > most {
		return "", fmt.Errorf("%d disks and networks: under libvirt a machine has at most %d", len(m.Disks)+len(m.Networks), most)
	}
	text, err := xml.MarshalIndent(d, "", "  ")
	return string(text), err
}

// plain is a definition without what only the host of the machine can tell.
func plain(m hypervisor.Machine) hypervisor.Machine {
	m.Firmware = hypervisor.BIOS
	return m
}

// Places on the machine's PCI bus: libvirt gives out those from below, and devices that it does not know
// get theirs from above.
const (
	lastPlace  = 0x1f
	firstPlace = 0x08
)

// arguments adds some to QEMU's command line, each device at the next place.
func (d *domainXML) arguments(args []string) {
	for i, a := range args {
		if i > 0 && args[i-1] == "-device" {
			place := fmt.Sprintf("0x%x", lastPlace-d.placed)
			d.placed++
			if rest, ok := strings.CutPrefix(a, "{"); ok {
				a = `{"bus":"pci.0","addr":"` + place + `",` + rest
			} else {
				a += ",bus=pci.0,addr=" + place
			}
		}
		d.Arguments = append(d.Arguments, argXML{a})
	}
}
