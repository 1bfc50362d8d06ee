package config

import (
	"fmt"
)

// Sidecar is the file of a vra-sidecar: it speaks for the vra of its machine.
type Sidecar struct {
	ID        string `yaml:"id"`         // its name within its site; its certificate carries it
	VRASocket string `yaml:"vra_socket"` // the unix socket of the vra
	Socket    string `yaml:"socket"`     // the sidecar's own, for users of this machine
	DataDir   string `yaml:"data_dir"`   // on disk: the audit records

	TLS    SidecarTLS    `yaml:"tls"`
	Listen SidecarListen `yaml:"listen,omitempty"`

	// Logs are those that LogsService tells, and that go into a support bundle.
	Logs []SidecarLog `yaml:"logs,omitempty"`
	// Configs are the files of daemons that go into a support bundle, without what looks like a secret.
	Configs []string `yaml:"configs,omitempty"`

	Audit  SidecarAudit  `yaml:"audit,omitempty"`
	Limits SidecarLimits `yaml:"limits,omitempty"`
}

// SidecarTLS names PEM files: all that may call have certificates of this CA.
type SidecarTLS struct {
	CA   string `yaml:"ca"`   // the site's authority
	Cert string `yaml:"cert"` // the sidecar's certificate
	Key  string `yaml:"key"`  // and its key
}

// SidecarListen are TCP addresses, host:port.
type SidecarListen struct {
	Logs        string `yaml:"logs,omitempty"`        // by default :4005
	Commands    string `yaml:"commands,omitempty"`    // by default :4006
	Checkpoints string `yaml:"checkpoints,omitempty"` // by default :4009
}

// SidecarLog is a file that a daemon logs into. Those that rotation made of it stand beside it: FILE.1 and so on.
type SidecarLog struct {
	Name string `yaml:"name"`
	Path string `yaml:"path"`
}

// SidecarAudit bounds what is kept of the audit records.
type SidecarAudit struct {
	Size Size `yaml:"size,omitempty"` // of a file, by default 16MiB
	Keep int  `yaml:"keep,omitempty"` // older files, by default 16
}

// SidecarLimits hold for each caller, by its certificate, and each port.
type SidecarLimits struct {
	Rate       int `yaml:"rate,omitempty"`       // calls a second, by default 100; four times as many at once
	Concurrent int `yaml:"concurrent,omitempty"` // calls under way, by default 32
}

// Defaults and bounds of a sidecar.
const (
	DefaultAuditSize  = Size(16 << 20)
	MinAuditSize      = Size(64 << 10)
	MaxAuditSize      = Size(1 << 30)
	DefaultAuditKeep  = 16
	MaxAuditKeep      = 1000
	DefaultRate       = 100
	DefaultConcurrent = 32
	MaxLimit          = 10000
)

// LoadSidecar reads the file of a vra-sidecar.
func LoadSidecar(path string) (*Sidecar, error) {
	var c Sidecar
	if err := load(path, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// ParseSidecar reads the text of such a file.
func ParseSidecar(text []byte) (*Sidecar, error) {
	var c Sidecar
	if err := parse(text, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate fills defaults and tells every mistake.
func (c *Sidecar) Validate() error {
	var m mistakes
	m.name("id", c.ID)
	m.socket("vra_socket", c.VRASocket)
	m.socket("socket", c.Socket)
	if c.Socket != "" && c.Socket == c.VRASocket {
		m.add("socket", "%s is taken by vra_socket", c.Socket)
	}
	m.path("data_dir", c.DataDir)
	m.path("tls.ca", c.TLS.CA)
	m.path("tls.cert", c.TLS.Cert)
	m.path("tls.key", c.TLS.Key)
	c.Listen.validate(&m)
	names, paths := map[string]string{}, map[string]string{}
	for i, l := range c.Logs {
		at := fmt.Sprintf("logs[%d]", i)
		m.name(at+".name", l.Name)
		unique(&m, names, at+".name", l.Name, "")
		m.path(at+".path", l.Path)
		unique(&m, paths, at+".path", l.Path, "")
	}
	for i, f := range c.Configs {
		m.path(fmt.Sprintf("configs[%d]", i), f)
		unique(&m, paths, fmt.Sprintf("configs[%d]", i), f, "")
	}
	if len(c.Logs) == 0 { // an empty list is none, also to whoever compares two files
		c.Logs = nil
	}
	if len(c.Configs) == 0 {
		c.Configs = nil
	}
	c.Audit.Size = orSize(c.Audit.Size, DefaultAuditSize)
	within(&m, "audit.size", c.Audit.Size, MinAuditSize, MaxAuditSize)
	for _, n := range []struct {
		where     string
		v         *int
		otherwise int
		high      int
	}{
		{"audit.keep", &c.Audit.Keep, DefaultAuditKeep, MaxAuditKeep},
		{"limits.rate", &c.Limits.Rate, DefaultRate, MaxLimit},
		{"limits.concurrent", &c.Limits.Concurrent, DefaultConcurrent, MaxLimit},
	} {
		if *n.v == 0 {
			*n.v = n.otherwise
		}
		within(&m, n.where, int64(*n.v), 1, int64(n.high))
	}
	return m.err()
}

func (l *SidecarListen) validate(m *mistakes) {
	all := []struct {
		where     string
		address   *string
		otherwise string
	}{{"listen.logs", &l.Logs, ":4005"}, {"listen.commands", &l.Commands, ":4006"}, {"listen.checkpoints", &l.Checkpoints, ":4009"}}
	for i, one := range all {
		*one.address = or(*one.address, one.otherwise)
		m.address(one.where, *one.address, 0)
		for _, earlier := range all[:i] {
			if clash(*one.address, *earlier.address) {
				m.add(one.where, "%s is taken by %s", *one.address, earlier.where)
				break
			}
		}
	}
}

func orSize(v, otherwise Size) Size {
	if v == 0 {
		return otherwise
	}
	return v
}

// CheckFiles tells what of the files and folders that the configuration names would keep the sidecar
// from running. It makes nothing. That the vra is not there yet is no fault, nor is a log.
func (c *Sidecar) CheckFiles() error {
	var m mistakes
	for _, f := range []struct{ where, path string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}} {
		m.file(f.where, checkPEM(f.path))
	}
	m.file("data_dir", checkFolder(c.DataDir))
	m.file("socket", checkFolderOf(c.Socket, ""))
	return m.err()
}
