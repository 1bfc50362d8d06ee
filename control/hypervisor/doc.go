// Package hypervisor says what recovery asks of whatever runs virtual machines: to define a
// machine on given disks, start and stop it, and show what it does. There is one driver a
// hypervisor below it; what they share is here.
//
// What a caller may rely on, of every driver:
//   - All calls may be made again: defining what is defined, starting what runs, stopping what
//     stands and undefining what is not there succeed and change nothing. So a caller that was
//     killed in the middle carries the same call out again.
//   - A machine outlives the process that started it.
//   - A machine never has a disk or network that its definition does not name.
package hypervisor

import (
	"context"
	"errors"
)

// Hypervisor runs machines. Calls for different machines may run concurrently.
type Hypervisor interface {
	// Check says why a definition would be refused, whatever its disks.
	Check(Machine) error
	// Shares says why machines could not share their memory here, so that disks are vhost-user-blk devices.
	Shares(context.Context) error
	// Define makes a machine known, stopped. Another definition under the name of one that
	// runs is refused.
	Define(context.Context, Machine) error
	// Start returns once the machine carries out instructions.
	Start(ctx context.Context, name string) error
	// Stop returns once the machine is off. Gracefully, it asks the guest and waits as long as ctx
	// allows: what comes then is the caller's. By force, it cuts the power.
	Stop(ctx context.Context, name string, how How) error
	// State is Absent for what is not defined.
	State(ctx context.Context, name string) (State, error)
	// Screenshot returns a PNG of the console.
	Screenshot(ctx context.Context, name string) ([]byte, error)
	// Serial returns what the machine has said on its first serial port since it was defined,
	// from the byte at off on; nothing when it has said nothing more.
	Serial(ctx context.Context, name string, off int64) ([]byte, error)
	// MaySetDisk says why SetDisk would be refused, whatever the disk, as the machine is now.
	MaySetDisk(ctx context.Context, name string) error
	// SetDisk has the machine find the disk of that volume, of d.Bytes, at d.File from now on, also when it is started again; or, from a
	// file, at d.NBD. One that runs moves there without a stop: what it has under way ends where it was begun, and only then it writes there.
	// One that runs on a disk over vhost-user goes on with what is served there, and finds the other when it is started again; where it is to be served over
	// that again d.VhostUser says so, and counts for such a machine instead of d.NBD.
	SetDisk(ctx context.Context, name string, d Disk) error
	// Undefine forgets a machine that is off.
	Undefine(ctx context.Context, name string) error
}

// Inventory is a hypervisor that tells which machines there are, of whomever.
type Inventory interface {
	Inventory(context.Context) ([]Found, error)
}

// Found is a machine that a hypervisor knows.
type Found struct {
	Name        string         `json:"name"`
	State       State          `json:"state"`
	MemoryBytes int64          `json:"memory_bytes"`
	CPUs        int            `json:"cpus"`
	Firmware    Firmware       `json:"firmware"`
	Disks       []FoundDisk    `json:"disks"`    // in the guest's order
	Networks    []FoundNetwork `json:"networks"` // in the guest's order
}

// FoundDisk is a disk of a machine that is known.
type FoundDisk struct {
	Name   string `json:"name"`   // as the hypervisor names it: vda
	Path   string `json:"path"`   // a file or device of the hypervisor's host, or another place in its words
	Format string `json:"format"` // raw can be protected
}

// FoundNetwork is an interface of a machine that is known.
type FoundNetwork struct {
	MAC  string `json:"mac"`
	Kind string `json:"kind"` // bridge, network, user: in the hypervisor's words
	Name string `json:"name"` // of the bridge or network; empty where the kind has none
}

// ErrAbsent says that no machine of that name is defined.
var ErrAbsent = errors.New("no such machine")

// How a machine is stopped.
type How string

// The ways.
const (
	Gracefully How = "graceful"
	ByForce    How = "force"
)

// State of a machine.
type State string

// The states. A guest that crashed or was paused from outside is Paused.
const (
	Absent  State = "absent"
	Off     State = "off"
	Running State = "running"
	Paused  State = "paused"
)

// Machine is a definition.
type Machine struct {
	Name        string    `json:"name"`
	MemoryBytes int64     `json:"memory_bytes"` // whole MiB
	CPUs        int       `json:"cpus"`
	Firmware    Firmware  `json:"firmware"`
	Disks       []Disk    `json:"disks"`                // in the guest's order
	VhostUser   bool      `json:"vhost_user,omitempty"` // it shares its memory, so that disks can be vhost-user-blk devices
	Networks    []Network `json:"networks"`             // none: no network
	// A kernel that the hypervisor loads itself, for guests without a boot loader; paths of this host.
	Kernel  string `json:"kernel,omitempty"`
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
	// Extra are options of the driver's own, which it may refuse.
	Extra []string `json:"extra,omitempty"`
}

// Firmware a machine starts with.
type Firmware string

// The kinds.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Disk is a disk of a machine.
type Disk struct {
	Volume string `json:"volume"`
	// NBD is where it is served: nbd+unix:///EXPORT?socket=PATH.
	NBD string `json:"nbd,omitempty"`
	// VhostUser is the unix socket where it is a vhost-user-blk device instead.
	VhostUser string `json:"vhost_user,omitempty"`
	// File is the raw file or block device that it is instead, of so many Bytes.
	File  string `json:"file,omitempty"`
	Bytes int64  `json:"bytes,omitempty"`
}

// Network is an interface of a machine.
type Network struct {
	MAC string `json:"mac,omitempty"` // the hypervisor's choice when empty
	// Bridge it is connected to; empty: isolated, so that nothing but what Forward names gets in or out.
	Bridge string `json:"bridge,omitempty"`
	// Forward leads TCP ports of this host into an isolated network, each as HOST:PORT=GUEST:PORT.
	Forward []string `json:"forward,omitempty"`
}
