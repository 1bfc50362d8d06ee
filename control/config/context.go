package config

import (
	"fmt"
	"path/filepath"
)

// Context tells the user's command whom to speak to.
type Context struct {
	// Group is the group that commands mean when none is named.
	Group string `yaml:"group"`
	// VRAs are the data planes of both sites.
	VRAs []ContextVRA `yaml:"vras"`
	// Filters are the files of the vra-filters of this host.
	Filters []string `yaml:"filters,omitempty"`
	// Machines is the file of the group's machines, for recovery.
	Machines string `yaml:"machines,omitempty"`
	// Recovery is the folder of recovery's jobs and reports; by default recovery, beside the context.
	Recovery string `yaml:"recovery,omitempty"`
	// Lab is the folder of the lab this context belongs to; empty outside a lab.
	Lab string `yaml:"lab,omitempty"`
	// Ports are the TCP ports that the lab listens on, by their use.
	Ports map[string]int `yaml:"ports,omitempty"`
}

// ContextVRA is one VRA, by the unix socket on which it, or its sidecar, answers, or by its sidecar's ports.
type ContextVRA struct {
	Site    string          `yaml:"site"`
	Role    string          `yaml:"role"` // source or target, of Group
	Socket  string          `yaml:"socket,omitempty"`
	Sidecar *ContextSidecar `yaml:"sidecar,omitempty"` // instead of Socket
}

// ContextSidecar is a sidecar on any machine, each address host:port, and the user's certificate.
type ContextSidecar struct {
	// ID is the sidecar's, as its certificate names it: no other one is taken for it. Empty: any of the site.
	ID          string     `yaml:"id,omitempty"`
	Commands    string     `yaml:"commands"`
	Checkpoints string     `yaml:"checkpoints"`
	Logs        string     `yaml:"logs"`
	TLS         SidecarTLS `yaml:"tls"`
}

func (v *ContextVRA) validate(m *mistakes, at string) {
	s := v.Sidecar
	if s == nil {
		m.socket(at+".socket", v.Socket)
		return
	}
	if v.Socket != "" {
		m.add(at+".sidecar", "is there, and so is socket: name one")
	}
	if s.ID != "" {
		m.name(at+".sidecar.id", s.ID)
	}
	m.address(at+".sidecar.commands", s.Commands, 1)
	m.address(at+".sidecar.checkpoints", s.Checkpoints, 1)
	m.address(at+".sidecar.logs", s.Logs, 1)
	m.path(at+".sidecar.tls.ca", s.TLS.CA)
	m.path(at+".sidecar.tls.cert", s.TLS.Cert)
	m.path(at+".sidecar.tls.key", s.TLS.Key)
}

// LoadContext reads a context.
func LoadContext(path string) (*Context, error) {
	var c Context
	if err := load(path, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate tells every mistake.
func (c *Context) Validate() error {
	var m mistakes
	m.name("group", c.Group)
	if len(c.VRAs) == 0 {
		m.add("vras", "is empty")
	}
	roles := map[string]string{}
	for i, v := range c.VRAs {
		at := fmt.Sprintf("vras[%d]", i)
		m.name(at+".site", v.Site)
		if v.Role != "source" && v.Role != "target" {
			m.add(at+".role", "%q: want source or target", v.Role)
		}
		unique(&m, roles, at+".role", v.Role, "")
		v.validate(&m, at)
	}
	files := map[string]string{}
	for i, f := range c.Filters {
		at := fmt.Sprintf("filters[%d]", i)
		m.path(at, f)
		unique(&m, files, at, f, "")
	}
	for _, f := range []struct{ key, path string }{{"machines", c.Machines}, {"recovery", c.Recovery}} {
		if f.path != "" {
			m.path(f.key, f.path)
		}
	}
	if c.Lab != "" {
		m.path("lab", c.Lab)
	}
	return m.err()
}

// RecoveryFolder is that of recovery's jobs, for a context that was loaded from path.
func (c *Context) RecoveryFolder(path string) (string, error) {
	if c.Recovery != "" {
		return c.Recovery, nil
	}
	path, err := filepath.Abs(path)
	return filepath.Join(filepath.Dir(path), "recovery"), err
}

// VRA is the one of a role.
func (c *Context) VRA(role string) (ContextVRA, bool) {
	for _, v := range c.VRAs {
		if v.Role == role {
			return v, true
		}
	}
	return ContextVRA{}, false
}
