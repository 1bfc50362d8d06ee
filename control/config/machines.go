package config

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"go.yaml.in/yaml/v3"
)

// Machines is the file of the machines of a group: what recovery starts on its volumes.
type Machines struct {
	// Hypervisor starts them, on the host of the command: qemu, the default, or a libvirt.
	Hypervisor Hypervisor `yaml:"hypervisor,omitempty"`
	Verify     Verify     `yaml:"verify,omitempty"` // without it no proof is scheduled
	Machines   []Machine  `yaml:"machines"`
}

// Machine is a machine, and how it is brought up.
type Machine struct {
	Name     string   `yaml:"name"`
	Memory   Size     `yaml:"memory,omitempty"`   // by default 512MiB
	CPUs     int      `yaml:"cpus,omitempty"`     // by default 1
	Firmware string   `yaml:"firmware,omitempty"` // bios, the default, or uefi
	Disks    []string `yaml:"disks"`              // names of the group's volumes, in the guest's order
	// Front is how it reaches its disks: vhost-user, the default where that can be had, by memory that it shares, or nbd.
	Front    string           `yaml:"front,omitempty"`
	Networks []MachineNetwork `yaml:"networks,omitempty"`
	// Files of the recovery host, for guests without a boot loader.
	Kernel  string `yaml:"kernel,omitempty"`
	Initrd  string `yaml:"initrd,omitempty"`
	Cmdline string `yaml:"cmdline,omitempty"`
	// QEMU are options of QEMU's about the machine itself, as [-cpu, qemu64].
	QEMU []string `yaml:"qemu,omitempty"`

	// Boot orders the machines: those with a lower number first, and the next once all of them run
	// and what they Wait for has come.
	Boot   int      `yaml:"boot,omitempty"`
	Delay  Duration `yaml:"delay,omitempty"`  // before it is started
	Before Script   `yaml:"before,omitempty"` // runs before it is started
	After  Script   `yaml:"after,omitempty"`  // once it runs and what it waits for has come
	Wait   Wait     `yaml:"wait,omitempty"`
	// WaitTime is how long that may take, by default 5m.
	WaitTime Duration      `yaml:"wait_time,omitempty"`
	Source   MachineSource `yaml:"source,omitempty"`
}

// How a machine reaches its disks.
const (
	FrontNBD       = "nbd"
	FrontVhostUser = "vhost-user"
)

// MachineNetwork is an interface, and where it leads.
type MachineNetwork struct {
	MAC string `yaml:"mac,omitempty"`
	// Live is the bridge for a live failover; empty: isolated there too. In a test each is isolated.
	Live string `yaml:"live,omitempty"`
	// Forward leads ports of the recovery host into the isolated network: HOST:PORT=GUEST:PORT.
	Forward []string `yaml:"forward,omitempty"`
}

// Script is a program by its absolute path and its arguments; no shell is between.
type Script struct {
	Command []string `yaml:"command,omitempty"`
	Time    Duration `yaml:"time,omitempty"` // it may take, by default 1m
}

// MachineSource is the machine that is protected, for a live failover or a move to stop it.
type MachineSource struct {
	QMP string `yaml:"qmp,omitempty"` // its QEMU's monitor, a unix socket
	// Or its domain, by name, of a libvirt that the host of the command reaches.
	Libvirt Hypervisor `yaml:"libvirt,omitempty"`
	Domain  string     `yaml:"domain,omitempty"`
	Time    Duration   `yaml:"time,omitempty"` // it may take to shut down, by default 2m
}

// Defaults of a machine.
const (
	DefaultMemory     = Size(512 << 20)
	DefaultWaitTime   = Duration(5 * time.Minute)
	DefaultScriptTime = Duration(time.Minute)
	DefaultStopTime   = Duration(2 * time.Minute)

	maxMachineTime = Duration(24 * time.Hour)
	maxMachineCPUs = 1024
)

// Wait is what a machine is waited for until it counts as up; empty: that it runs.
type Wait struct {
	Kind WaitKind
	What string // the text, the address, or the program's path
}

// WaitKind is how it is looked at.
type WaitKind string

// The kinds.
const (
	WaitNothing WaitKind = ""
	WaitSerial  WaitKind = "serial" // it says the text on its serial port
	WaitTCP     WaitKind = "tcp"    // somebody takes connections at HOST:PORT, as seen from here
	WaitScript  WaitKind = "script" // the program exits with 0
)

// ParseWait reads serial:TEXT, tcp:HOST:PORT or script:PATH; empty is nothing.
func ParseWait(s string) (Wait, error) {
	kind, what, ok := strings.Cut(s, ":")
	w := Wait{WaitKind(kind), what}
	switch {
	case s == "":
		return w, nil
	case ok && w.Kind == WaitSerial && what != "":
		return w, nil
	case ok && w.Kind == WaitTCP:
		if _, port, err := net.SplitHostPort(what); err == nil && port != "" {
			return w, nil
		}
	case ok && w.Kind == WaitScript && strings.HasPrefix(what, "/"):
		return w, nil
	}
	return Wait{}, fmt.Errorf("wait %q: want serial:TEXT, tcp:HOST:PORT, or script:PATH with an absolute path", s)
}

func (w Wait) String() string {
	if w.Kind == WaitNothing {
		return ""
	}
	return string(w.Kind) + ":" + w.What
}

// UnmarshalYAML reads a condition.
func (w *Wait) UnmarshalYAML(n *yaml.Node) error { return scalar(n, w, ParseWait) }

// MarshalYAML writes it as ParseWait reads it.
func (w Wait) MarshalYAML() (any, error) { return w.String(), nil }

// MarshalText and UnmarshalText are the same for JSON.
func (w Wait) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads a condition.
func (w *Wait) UnmarshalText(p []byte) (err error) {
	*w, err = ParseWait(string(p))
	return err
}

// LoadMachines reads the file of a group's machines.
func LoadMachines(path string) (*Machines, error) {
	var c Machines
	if err := load(path, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate fills defaults and tells every mistake.
func (c *Machines) Validate() error {
	var m mistakes
	if len(c.Machines) == 0 {
		m.add("machines", "is empty")
	}
	c.Verify.validate(&m, "verify")
	names, disks := map[string]string{}, map[string]string{}
	for i := range c.Machines {
		at := fmt.Sprintf("machines[%d]", i)
		c.Machines[i].validate(&m, at)
		unique(&m, names, at+".name", c.Machines[i].Name, "")
		for j, d := range c.Machines[i].Disks {
			unique(&m, disks, fmt.Sprintf("%s.disks[%d]", at, j), d, "")
		}
	}
	return m.err()
}

func (c *Machine) validate(m *mistakes, at string) {
	fill := func(d *Duration, by Duration) {
		if *d == 0 {
			*d = by
		}
	}
	fill(&c.WaitTime, DefaultWaitTime)
	fill(&c.Before.Time, DefaultScriptTime)
	fill(&c.After.Time, DefaultScriptTime)
	fill(&c.Source.Time, DefaultStopTime)
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Firmware == "" {
		c.Firmware = "bios"
	}
	m.name(at+".name", c.Name)
	within(m, at+".memory", c.Memory, 1<<20, 1<<50)
	if c.Memory%(1<<20) != 0 {
		m.add(at+".memory", "%s: want whole MiB", c.Memory)
	}
	within(m, at+".cpus", int64(c.CPUs), 1, maxMachineCPUs)
	if c.Front != "" && c.Front != FrontNBD && c.Front != FrontVhostUser {
		m.add(at+".front", "%q: want nbd or vhost-user", c.Front)
	}
	if c.Firmware != "bios" && c.Firmware != "uefi" {
		m.add(at+".firmware", "%q: want bios or uefi", c.Firmware)
	}
	if len(c.Disks) == 0 {
		m.add(at+".disks", "is empty: name the volumes that are its disks")
	}
	for i, d := range c.Disks {
		m.name(fmt.Sprintf("%s.disks[%d]", at, i), d)
	}
	for i, n := range c.Networks {
		n.validate(m, fmt.Sprintf("%s.networks[%d]", at, i))
	}
	for _, f := range []struct{ key, path string }{{".kernel", c.Kernel}, {".initrd", c.Initrd}} {
		if f.path != "" {
			m.path(at+f.key, f.path)
		}
	}
	if c.Kernel == "" && (c.Initrd != "" || c.Cmdline != "") {
		m.add(at+".kernel", "is missing, and there is an initrd or cmdline")
	}
	c.Before.validate(m, at+".before")
	c.After.validate(m, at+".after")
	within(m, at+".delay", c.Delay, 0, maxMachineTime)
	within(m, at+".wait_time", c.WaitTime, Duration(time.Second), maxMachineTime)
	within(m, at+".source.time", c.Source.Time, Duration(time.Second), maxMachineTime)
	c.Source.validate(m, at+".source")
}

func (n MachineNetwork) validate(m *mistakes, at string) {
	if n.MAC != "" {
		if a, err := net.ParseMAC(n.MAC); err != nil || len(a) != 6 {
			m.add(at+".mac", "%q: want six bytes, as in 52:54:00:12:34:56", n.MAC)
		}
	}
	if n.Live != "" && strings.ContainsAny(n.Live, ", /") {
		m.add(at+".live", "%q is no bridge", n.Live)
	}
	for i, f := range n.Forward {
		if err := checkForward(f); err != nil {
			m.add(fmt.Sprintf("%s.forward[%d]", at, i), "%q: %v", f, err)
		}
	}
}

func checkForward(f string) error {
	host, guest, ok := strings.Cut(f, "=")
	if ok {
		_, _, herr := net.SplitHostPort(host)
		_, _, gerr := net.SplitHostPort(guest)
		ok = herr == nil && gerr == nil && (!strings.ContainsAny(f, ",[]") || invariant.Planted("config/any-forward"))
	}
	if !ok {
		return errors.New("want HOST:PORT=GUEST:PORT, as in 127.0.0.1:8080=10.0.2.15:80")
	}
	return nil
}

func (s Script) validate(m *mistakes, at string) {
	if len(s.Command) > 0 {
		m.path(at+".command[0]", s.Command[0])
	}
	within(m, at+".time", s.Time, Duration(time.Second), maxMachineTime)
}
