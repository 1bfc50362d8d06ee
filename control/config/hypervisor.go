package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// Hypervisor is what runs machines: plain QEMU on this host, the zero value, or a libvirt of this host.
type Hypervisor struct {
	URI    string // as libvirt is asked to connect, qemu:///system; empty: plain QEMU
	Socket string // where libvirt listens; empty: where a host's does
}

// plainQEMU is the word for no libvirt.
const plainQEMU = "qemu"

// ParseHypervisor reads qemu, or libvirt's own way to name a connection to this host:
// qemu:///system, qemu+unix:///session?socket=/run/user/1000/libvirt/libvirt-sock.
func ParseHypervisor(s string) (h Hypervisor, err error) {
	if s == "" || s == plainQEMU {
		return h, nil
	}
	wrong := func(why string) (Hypervisor, error) {
		return Hypervisor{}, fmt.Errorf("hypervisor %q: %s: want qemu, or a libvirt of this host, as in qemu:///system or qemu+unix:///system?socket=PATH", s, why)
	}
	u, err := url.Parse(s)
	if err != nil {
		return wrong("it does not read")
	}
	query := u.Query()
	h = Hypervisor{URI: "qemu://" + u.Path, Socket: query.Get("socket")}
	query.Del("socket")
	switch {
	case u.Scheme != "qemu" && u.Scheme != "qemu+unix":
		return wrong("it is none that is known")
	case u.Host != "" || u.User != nil:
		return wrong("it names another host")
	case u.Path != "/system" && u.Path != "/session":
		return wrong("it names no connection")
	case len(query) > 0 || u.Fragment != "":
		return wrong("it has more than a socket")
	case h.Socket != "" && !filepath.IsAbs(h.Socket):
		return wrong("the socket has no absolute path")
	case h.Socket == "" && u.Path == "/session":
		return wrong("each user's session listens elsewhere, and its socket is not named")
	}
	return h, nil
}

// Libvirt says whether it is one.
func (h Hypervisor) Libvirt() bool { return h.URI != "" }

func (h Hypervisor) String() string {
	switch {
	case !h.Libvirt():
		return plainQEMU
	case h.Socket == "":
		return h.URI
	}
	return "qemu+unix" + h.URI[len("qemu"):] + "?socket=" + url.QueryEscape(h.Socket)
}

// UnmarshalYAML reads the word.
func (h *Hypervisor) UnmarshalYAML(n *yaml.Node) error { return scalar(n, h, ParseHypervisor) }

// MarshalYAML writes it as ParseHypervisor reads it.
func (h Hypervisor) MarshalYAML() (any, error) { return h.String(), nil }

// MarshalText and UnmarshalText are the same for JSON.
func (h Hypervisor) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads the word.
func (h *Hypervisor) UnmarshalText(p []byte) (err error) {
	*h, err = ParseHypervisor(string(p))
	return err
}

func (s MachineSource) validate(m *mistakes, at string) {
	if s.QMP != "" {
		m.socket(at+".qmp", s.QMP)
	}
	var err error
	switch {
	case s.QMP != "" && s.Domain != "":
		err = errors.New("is there, and so is qmp: name one")
	case s.Domain != "" && !s.Libvirt.Libvirt():
		err = errors.New("is there without the libvirt that has it, as in libvirt: qemu:///system")
	case s.Domain == "" && s.Libvirt.Libvirt():
		err = errors.New("is missing: which of libvirt's domains is the machine")
	}
	if err != nil {
		m.add(at+".domain", "%v", err)
	}
}
