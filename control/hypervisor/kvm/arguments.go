package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Options of QEMU that a definition may add: of the machine itself. What opens files, disks, networks
// or monitors is none of them: with those a test could reach out of its isolation, and two
// machines could have one disk.
var extraOptions = []string{"-accel", "-cpu", "-global", "-machine", "-rtc", "-smbios", "-vga"}

// CheckExtra says what is wrong with options that a definition adds.
func CheckExtra(extra []string) error {
	for i, word := range extra {
		switch {
		case i%2 == 0 && !slices.Contains(extraOptions, word):
			return fmt.Errorf("QEMU's %s is not allowed: only %s are, each with one word behind it", word, strings.Join(extraOptions, ", "))
		case i%2 == 1 && reaches(word):
			return fmt.Errorf("%s %s names a file or a backend: definitions have none but those of their own keys", extra[i-1], word)
		case i%2 == 0 && i == len(extra)-1:
			return fmt.Errorf("QEMU's %s has no word behind it", word)
		}
	}
	return nil
}

// reaches says whether an option's value names something beside the machine.
func reaches(value string) bool {
	if invariant.Planted("kvm/any-option") {
		return false
	}
	for part := range strings.SplitSeq(value, ",") {
		key, _, _ := strings.Cut(part, "=")
		for _, bad := range []string{"file", "path", "drive", "netdev", "chardev", "memory-backend", "kernel", "initrd", "firmware", "dtb", "dumpdtb", "pflash", "append"} {
			if key == bad || strings.HasSuffix(key, "."+bad) || strings.HasPrefix(key, bad) && bad == "pflash" {
				return true
			}
		}
	}
	return strings.Contains(value, "/")
}

// Where Debian, Fedora and SUSE put UEFI for guests: code, and an empty store of variables.
var uefiFiles = [][2]string{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	{"/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"},
}

func uefi() (code, vars string, err error) {
	for _, f := range uefiFiles {
		if _, err := os.Stat(f[0]); err == nil {
			return f[0], f[1], nil
		}
	}
	return "", "", errors.New("firmware uefi: there is none on this host: install the package ovmf")
}

// keepVars gives a machine a store of UEFI's variables of its own, once.
func keepVars(dir string) error {
	path := filepath.Join(dir, varsName)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, from, err := uefi()
	if err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	return WriteFile(path, text)
}

// arguments is QEMU's command line. Names of files are relative to the machine's folder.
func (l *Local) arguments(m hypervisor.Machine) ([]string, error) {
	switch {
	case m.MemoryBytes < 1<<20 || m.MemoryBytes%(1<<20) != 0:
		return nil, fmt.Errorf("memory of %d bytes: want whole MiB", m.MemoryBytes)
	case m.CPUs < 1:
		return nil, fmt.Errorf("%d processors", m.CPUs)
	case m.Kernel == "" && (m.Initrd != "" || m.Cmdline != ""):
		return nil, errors.New("an initrd or command line without a kernel")
	}
	if err := CheckExtra(m.Extra); err != nil {
		return nil, err
	}
	args := []string{"-name", m.Name, "-no-user-config", "-nodefaults", "-display", "none",
		"-m", strconv.FormatInt(m.MemoryBytes>>20, 10), "-smp", strconv.Itoa(m.CPUs),
		"-chardev", "file,id=serial,path=" + serialName + ",append=on", "-serial", "chardev:serial",
		"-qmp", "unix:" + monitorName + ",server=on,wait=off", "-pidfile", pidName, "-daemonize", "-S"}
	if !slices.Contains(m.Extra, "-vga") {
		args = append(args, "-vga", "std")
	}
	args = append(args, l.processor(m.Extra)...)
	if m.Firmware == hypervisor.UEFI {
		code, _, err := uefi()
		if err != nil {
			return nil, err
		}
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+comma(code), "-drive", "if=pflash,format=raw,file="+varsName)
	}
	if m.VhostUser {
		args = append(args, "-object", "memory-backend-memfd,id="+memoryName+",share=on,size="+strconv.FormatInt(m.MemoryBytes, 10), "-machine", "memory-backend="+memoryName)
	}
	for i, d := range m.Disks {
		if d.VhostUser != "" && !m.VhostUser {
			return nil, fmt.Errorf("disk %s: the machine does not share its memory", d.Volume)
		}
		disk, err := diskArguments(i, d)
		if err != nil {
			return nil, err
		}
		args = append(args, disk...)
	}
	for i, n := range m.Networks {
		net, err := networkArguments(i, n)
		if err != nil {
			return nil, err
		}
		args = append(args, net...)
	}
	if len(m.Networks) == 0 {
		args = append(args, "-nic", "none")
	}
	for _, f := range []struct{ option, value string }{{"-kernel", m.Kernel}, {"-initrd", m.Initrd}, {"-append", m.Cmdline}} {
		if f.value != "" {
			args = append(args, f.option, f.value)
		}
	}
	return append(args, m.Extra...), nil
}

// comma writes a value as QEMU's lists of options read it.
func comma(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// processor is the host's own where it can be lent, else an emulated one.
func (l *Local) processor(extra []string) (args []string) {
	if !slices.Contains(extra, "-accel") {
		accel := "tcg,tb-size=128" // MiB of translated code; by default it would be up to 1 GiB
		if l.kvm {
			accel = "kvm"
		}
		args = append(args, "-accel", accel)
	}
	if !slices.Contains(extra, "-cpu") {
		args = append(args, "-cpu", "max")
	}
	return args
}

// reconnectSeconds is how long QEMU waits for a view whose server went away, before the guest sees errors.
const reconnectSeconds = 3600

// exportOf takes the URI of a disk apart that is served over NBD at a unix socket.
func exportOf(d hypervisor.Disk) (socket, name string, err error) {
	n := Node{Driver: "nbd", File: d.NBD}
	socket, name, ok := n.export()
	if !ok || socket == "" {
		return "", "", fmt.Errorf("disk %s: %q is no NBD export at a unix socket", d.Volume, d.NBD)
	}
	return socket, name, nil
}

// blockNode describes the node of a disk to QEMU.
func blockNode(name string, d hypervisor.Disk) (map[string]any, error) {
	if d.File != "" {
		return fileNode(name, d)
	}
	socket, export, err := exportOf(d)
	return map[string]any{
		"driver": "nbd", "node-name": name, "export": export, "discard": "unmap", "reconnect-delay": reconnectSeconds,
		"server": map[string]any{"type": "unix", "path": socket},
	}, err
}

// memoryName is QEMU's name of memory that a machine shares with whoever serves its disks.
const memoryName = "shared"

// overVhost says whether a machine that is started has the disk over vhost-user.
func overVhost(d hypervisor.Disk) bool { return d.VhostUser != "" && d.File == "" }

// vhostArguments describe a disk that is served from elsewhere; QEMU connects again as often as it takes.
func vhostArguments(i int, d hypervisor.Disk) ([]string, error) {
	id := "disk" + strconv.Itoa(i)
	device, err := json.Marshal(map[string]any{"driver": "vhost-user-blk-pci", "id": "vd" + strconv.Itoa(i), "chardev": id, "num-queues": 1, "bootindex": i + 1})
	return []string{"-chardev", "socket,id=" + id + ",path=" + comma(d.VhostUser) + ",reconnect=1", "-device", string(device)}, err
}

func diskArguments(i int, d hypervisor.Disk) ([]string, error) {
	if overVhost(d) {
		return vhostArguments(i, d)
	}
	node := fmt.Sprintf("disk%d", i)
	described, err := blockNode(node, d)
	if err != nil {
		return nil, err
	}
	block, err := json.Marshal(described)
	if err != nil {
		return nil, err
	}
	device, err := json.Marshal(map[string]any{
		"driver": "virtio-blk-pci", "id": "vd" + strconv.Itoa(i), "drive": node, "bootindex": i + 1, "serial": d.Volume[:min(len(d.Volume), 20)],
	})
	return []string{"-blockdev", string(block), "-device", string(device)}, err
}

func networkArguments(i int, n hypervisor.Network) ([]string, error) {
	id := "net" + strconv.Itoa(i)
	// Without restrict a guest on QEMU's own network reaches whatever this host does.
	back := "user,id=" + id + ",restrict=on"
	if invariant.Planted("kvm/not-isolated") {
		back = "user,id=" + id
	}
	if n.Bridge != "" {
		if len(n.Forward) > 0 {
			return nil, fmt.Errorf("network %d: ports are forwarded into an isolated network only", i)
		}
		back = "bridge,id=" + id + ",br=" + comma(n.Bridge)
	}
	for _, f := range n.Forward {
		host, guest, ok := strings.Cut(f, "=")
		_, _, herr := net.SplitHostPort(host)
		_, _, gerr := net.SplitHostPort(guest)
		if !ok || herr != nil || gerr != nil || strings.ContainsAny(f, ",[]") {
			return nil, fmt.Errorf("network %d: forward %q: want HOST:PORT=GUEST:PORT", i, f)
		}
		back += ",hostfwd=tcp:" + host + "-" + guest
	}
	front := "virtio-net-pci,netdev=" + id + ",romfile=" // it boots from disks alone
	if n.MAC != "" {
		if _, err := net.ParseMAC(n.MAC); err != nil {
			return nil, fmt.Errorf("network %d: %w", i, err)
		}
		front += ",mac=" + n.MAC
	}
	return []string{"-netdev", back, "-device", front}, nil
}
