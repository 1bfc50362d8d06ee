package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// VRA is the file of a vra: one data plane, as a source of some groups, a target, or both.
type VRA struct {
	Site    string `yaml:"site"`     // this site's name
	ID      string `yaml:"id"`       // this VRA's name within its site; its certificate carries it
	DataDir string `yaml:"data_dir"` // on disk: what must survive a reboot
	RunDir  string `yaml:"run_dir"`  // memory-backed: order pages, windows, sockets of views
	Socket  string `yaml:"socket"`   // the unix socket of control/api
	TLS     TLS    `yaml:"tls"`

	Target *Target `yaml:"target,omitempty"`
	Source *Source `yaml:"source,omitempty"`

	// MetricsListen is a TCP address for metrics; empty is off. They are always on the socket.
	MetricsListen string `yaml:"metrics_listen,omitempty"`

	LogLevel LogLevel `yaml:"log_level,omitempty"` // debug, info (the default), warn or error
}

// TLS names PEM files.
type TLS struct {
	CA     string `yaml:"ca"`      // this site's authority
	Cert   string `yaml:"cert"`    // this VRA's certificate
	Key    string `yaml:"key"`     // and its key
	PeerCA string `yaml:"peer_ca"` // the other site's authority, trusted for PeerSite only
	// PeerSite is the name of the other site.
	PeerSite string `yaml:"peer_site"`
}

// Target makes the VRA take records.
type Target struct {
	ListenControl string `yaml:"listen_control,omitempty"` // host:port, by default :4007
	ListenData    string `yaml:"listen_data,omitempty"`    // host:port, by default :4008
	// Listen is one host:port for both, instead of the two: for firewalls that pass one port.
	Listen string `yaml:"listen,omitempty"`
	Store  string `yaml:"store,omitempty"` // the folder of journal and replicas
	// Stores are the folders of a set that keeps them together, instead of Store; each on a disk of its own.
	Stores []string `yaml:"stores,omitempty"`
	// Parity is how what is kept survives disks: none (the default); local, which heals
	// damage within Store; k+m over Stores, as in 4+2: any m of them may be lost.
	Parity      Parity `yaml:"parity,omitempty"`
	Cache       Size   `yaml:"cache,omitempty"`        // of indexes and of what views read, in memory, for all groups; by default 64MiB
	IndexMemory Size   `yaml:"index_memory,omitempty"` // what of all groups' indexes may wait in memory to be written; by default 64MiB

	Retention Retention `yaml:"retention,omitempty"` // of groups that have none of their own
}

// Source makes the VRA send groups.
type Source struct {
	Groups  []SourceGroup `yaml:"groups"`
	Shaping Shaping       `yaml:"shaping,omitempty"` // until another is set with holdfast shaping set
	// Compression is auto (the default: LZ4, and raw where the link is faster than compressing), lz4 or none.
	Compression string `yaml:"compression,omitempty"`
	// Connections is how many data connections there are to each target: auto (the default: as
	// many as pay, by measurement), or 1 to 8.
	Connections string `yaml:"connections,omitempty"`
	// WindowBudget is the memory of all groups' windows together, by default 1GiB or, for many
	// groups, 4MiB each. When it is short, groups of lower priority give way first.
	WindowBudget Size `yaml:"window_budget,omitempty"`
	// SpillBudget is what files on disk may take, all groups together, of what waits and has no room in memory; by
	// default there are none, and what changes then is only marked.
	SpillBudget Size `yaml:"spill_budget,omitempty"`
	// SpillDir is the folder for them, by default spill in the data directory. 512MiB of its file system are left to others.
	SpillDir string `yaml:"spill_dir,omitempty"`
	// ListenCuts is host:port where other source VRAs of this site, which share groups, tell of
	// cuts: by default :4007, which a VRA that is a target too needs for that.
	ListenCuts string `yaml:"listen_cuts,omitempty"`
}

// Shaping says how much may leave a source, all groups and connections together.
type Shaping struct {
	Cap     string   `yaml:"cap,omitempty"`     // as in 20Mbit, by default none
	Windows []string `yaml:"windows,omitempty"` // the first that holds the time gives the cap, as in "mon-fri 08:00-18:00 5Mbit"
	Zone    string   `yaml:"zone,omitempty"`    // of the windows' clock, as in Europe/Zurich; by default the machine's
}

// SourceGroup is a group at its source.
type SourceGroup struct {
	Name     string         `yaml:"name"`
	ID       ID             `yaml:"id"`
	Stream   ID             `yaml:"stream"`
	Lineage  ID             `yaml:"lineage"`
	Interval Duration       `yaml:"interval,omitempty"` // between checkpoints, by default 5s
	Window   Size           `yaml:"window,omitempty"`   // of records not acknowledged, by default 256MiB
	Priority string         `yaml:"priority,omitempty"` // high, medium (the default) or low, beside the source's other groups
	Target   Endpoint       `yaml:"target"`
	Filters  []string       `yaml:"filters"` // the pool sockets of the filters of its volumes
	Volumes  []SourceVolume `yaml:"volumes"`
	// Sources are all source VRAs of a group that has several, this one among them, alike and in
	// the same order in the files of all: the first leads the checkpoints.
	Sources []GroupSource `yaml:"sources,omitempty"`

	Freeze Freeze `yaml:"freeze,omitempty"` // for checkpoints that are made with --freeze

	// Paused has a group of which this VRA knows nothing yet begin paused: nothing of it is sent until holdfast group resume, or
	// group preseed. After that it says nothing.
	Paused bool `yaml:"paused,omitempty"`
}

// GroupSource is one of several source VRAs of a group.
type GroupSource struct {
	VRA     string `yaml:"vra"`               // its id within the site
	Stream  ID     `yaml:"stream"`            // its own stream of the group
	Address string `yaml:"address,omitempty"` // host:port of its source.listen_cuts; of this VRA itself it may be left out
}

// MaxSources is how many source VRAs a group may have.
const MaxSources = 16

// validateSources checks the sources of a group of the VRA of that id.
func (g *SourceGroup) validateSources(m *mistakes, at, id string, addresses map[string]string) {
	if len(g.Sources) == 0 {
		return
	}
	if len(g.Sources) == 1 || len(g.Sources) > MaxSources {
		m.add(at, "%d of them: 2 to %d, or none where this VRA is the only one", len(g.Sources), MaxSources)
	}
	if len(g.Freeze.Before)+len(g.Freeze.After) > 0 {
		m.add(at, "are there, and so is freeze: guests of several VRAs cannot be frozen together yet")
	}
	names, streams, mine := map[string]string{}, map[ID]string{}, false
	for i, s := range g.Sources {
		where := fmt.Sprintf("%s[%d]", at, i)
		m.name(where+".vra", s.VRA)
		m.id(where+".stream", s.Stream)
		unique(m, names, where+".vra", s.VRA, "")
		unique(m, streams, where+".stream", s.Stream, 0)
		if s.VRA == id {
			mine = true
			if s.Stream != g.Stream {
				m.add(where+".stream", "%v is not this VRA's stream of the group, %v", s.Stream, g.Stream)
			}
			continue
		}
		m.address(where+".address", s.Address, 1)
		if was := addresses[s.VRA]; was != "" && was != s.Address {
			m.add(where+".address", "%s has the address %s in another group", s.VRA, was)
		}
		addresses[s.VRA] = s.Address
	}
	if !mine {
		m.add(at, "this VRA, %s, is not among them", id)
	}
}

// Shared says that a group has several source VRAs.
func (s *Source) Shared() bool {
	return slices.ContainsFunc(s.Groups, func(g SourceGroup) bool { return len(g.Sources) > 0 })
}

// Freeze are the commands around a cut: a program by its absolute path, and its arguments. No
// shell is between, and each has 10 s.
type Freeze struct {
	Before []string `yaml:"before,omitempty"` // brings the guests to rest
	After  []string `yaml:"after,omitempty"`  // lets them go on; it always runs
}

func (z Freeze) validate(m *mistakes, at string) {
	program := func(where string, command []string) {
		if len(command) > 0 && !filepath.IsAbs(command[0]) {
			m.add(where, "%q: want the absolute path of a program, and its arguments after it", command[0])
		}
	}
	program(at+".before", z.Before)
	program(at+".after", z.After)
	if len(z.Before) > 0 && len(z.After) == 0 {
		m.add(at+".after", "is missing: what lets the guests go on again")
	}
}

// Endpoint is what a source dials to reach a target, host:port. Behind a translation of
// addresses (NAT) that is not where the target listens; nothing else is ever dialled.
// A host may be a name, which is looked up at each dial.
type Endpoint struct {
	Control string `yaml:"control,omitempty"`
	Data    string `yaml:"data,omitempty"`
	Address string `yaml:"address,omitempty"` // of a target with one port for both, instead of the two
}

func (e Endpoint) validate(m *mistakes, at string) {
	if e.Address != "" {
		m.address(at+".address", e.Address, 1)
		if e.Control != "" || e.Data != "" {
			m.add(at+".address", "is there, and so is %s: name one port or two", or(e.Control, e.Data))
		}
		return
	}
	m.address(at+".control", e.Control, 1)
	m.address(at+".data", e.Data, 1)
	if e.Data != "" && e.Data == e.Control {
		m.add(at+".data", "%s is taken by %s.control: write address where one port takes both", e.Data, at)
	}
}

// SourceVolume is a volume of a group, as its filter knows it too.
type SourceVolume struct {
	Name string `yaml:"name"`
	ID   uint32 `yaml:"id"` // within the group, never given out twice; not zero
}

// Defaults and bounds of what a target keeps in memory.
const (
	DefaultCache   = Size(64 << 20)
	MinCache       = Size(8 << 20)
	DefaultIndex   = Size(64 << 20)
	MinIndex       = Size(16 << 20)
	MaxTargetBytes = Size(1 << 40)
)

// Defaults and bounds of a group at its source.
const (
	DefaultInterval = Duration(5 * time.Second)
	MinInterval     = Duration(time.Second)
	MaxInterval     = Duration(time.Minute)
	DefaultWindow   = Size(256 << 20)
	MinWindow       = Size(16 << 20)
	MaxWindow       = Size(1 << 40)

	DefaultWindowBudget = Size(1 << 30)
	MinWindowBudget     = MinWindow
	MinWindowShare      = Size(4 << 20) // of a group: half of it is its own, whatever the others do

	MinSpillShare = Size(64 << 20) // of a group, as well
)

// LoadVRA reads the file of a vra.
func LoadVRA(path string) (*VRA, error) {
	var c VRA
	if err := load(path, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// ParseVRA reads the text of such a file.
func ParseVRA(text []byte) (*VRA, error) {
	var c VRA
	if err := parse(text, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate fills defaults and tells every mistake.
func (c *VRA) Validate() error {
	var m mistakes
	m.name("site", c.Site)
	m.name("id", c.ID)
	m.path("data_dir", c.DataDir)
	m.path("run_dir", c.RunDir)
	m.socket("socket", c.Socket)
	m.path("tls.ca", c.TLS.CA)
	m.path("tls.cert", c.TLS.Cert)
	m.path("tls.key", c.TLS.Key)
	m.path("tls.peer_ca", c.TLS.PeerCA)
	m.name("tls.peer_site", c.TLS.PeerSite)
	if c.TLS.PeerSite != "" && c.TLS.PeerSite == c.Site {
		m.add("tls.peer_site", "%s is this site", c.Site)
	}
	if c.Target == nil && c.Source == nil {
		m.add("source, target", "both are missing: this VRA would do nothing")
	}
	if t := c.Target; t != nil {
		t.validatePorts(&m)
		t.validateStores(&m)
		if t.Cache == 0 {
			t.Cache = DefaultCache
		}
		if t.IndexMemory == 0 {
			t.IndexMemory = DefaultIndex
		}
		within(&m, "target.cache", t.Cache, MinCache, MaxTargetBytes)
		t.Retention.validate(&m, "target.retention")
		within(&m, "target.index_memory", t.IndexMemory, MinIndex, MaxTargetBytes)
	}
	if c.Source != nil {
		c.Source.validate(&m, c.ID)
	}
	if c.MetricsListen != "" {
		m.address("metrics_listen", c.MetricsListen, 0)
	}
	c.listeners(&m)
	c.LogLevel.validate(&m)
	return m.err()
}

func (t *Target) validatePorts(m *mistakes) {
	if t.Listen != "" {
		m.address("target.listen", t.Listen, 0)
		if t.ListenControl != "" || t.ListenData != "" {
			m.add("target.listen", "is there, and so is %s: name one port or two", or(t.ListenControl, t.ListenData))
		}
		return
	}
	t.ListenControl = or(t.ListenControl, ":4007")
	t.ListenData = or(t.ListenData, ":4008")
	m.address("target.listen_control", t.ListenControl, 0)
	m.address("target.listen_data", t.ListenData, 0)
}

// listeners refuses two that would take the same port.
func (c *VRA) listeners(m *mistakes) {
	type listener struct{ where, address string }
	all := []listener{{"metrics_listen", c.MetricsListen}}
	if t := c.Target; t != nil {
		all = []listener{{"target.listen_control", t.ListenControl}, {"target.listen_data", t.ListenData}, {"target.listen", t.Listen}, all[0]}
	}
	if c.Source != nil {
		all = append(all, listener{"source.listen_cuts", c.Source.ListenCuts})
	}
	for i, l := range all {
		for _, earlier := range all[:i] {
			if clash(l.address, earlier.address) {
				m.add(l.where, "%s is taken by %s", l.address, earlier.where)
				break
			}
		}
	}
}

// clash says whether two listeners would be in each other's way.
func clash(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	all := func(host string) bool { ip := net.ParseIP(host); return host == "" || ip != nil && ip.IsUnspecified() }
	return hostA == hostB || all(hostA) || all(hostB)
}

// Auto is the word for what is found by measurement, and MaxConnections the most there may be.
const (
	Auto           = "auto"
	MaxConnections = 8
)

// DataConnections is how many data connections there are to each target; 0 is by measurement.
func (s *Source) DataConnections() int {
	if n, err := strconv.Atoi(s.Connections); err == nil && n >= 1 && n <= MaxConnections {
		return n
	}
	return 0
}

func (s *Source) validate(m *mistakes, id string) {
	if len(s.Groups) == 0 {
		m.add("source.groups", "is empty")
	}
	switch s.Compression = or(s.Compression, "auto"); s.Compression {
	case "auto", "lz4", "none":
	default:
		m.add("source.compression", "%q: want auto, lz4 or none", s.Compression)
	}
	if s.Connections = or(s.Connections, Auto); s.Connections != Auto && s.DataConnections() == 0 {
		m.add("source.connections", "%q: want auto, or 1 to %d", s.Connections, MaxConnections)
	}
	least := max(MinWindowBudget, MinWindowShare*Size(len(s.Groups)))
	if s.WindowBudget == 0 {
		s.WindowBudget = max(DefaultWindowBudget, least)
	}
	within(m, "source.window_budget", s.WindowBudget, MinWindowBudget, MaxWindow)
	if s.WindowBudget >= MinWindowBudget && s.WindowBudget < least {
		m.add("source.window_budget", "%v is not enough for %d groups: at least %v, %v each", s.WindowBudget, len(s.Groups), least, MinWindowShare)
	}
	if least := MinSpillShare * Size(max(1, len(s.Groups))); s.SpillBudget != 0 && (s.SpillBudget < least || s.SpillBudget > MaxWindow) {
		m.add("source.spill_budget", "%v is not between %v, which is %v a group, and %v; 0 is none", s.SpillBudget, least, MinSpillShare, MaxWindow)
	}
	if s.SpillDir != "" {
		m.path("source.spill_dir", s.SpillDir)
	}
	if s.Shared() {
		s.ListenCuts = or(s.ListenCuts, ":4007")
	}
	if s.ListenCuts != "" {
		m.address("source.listen_cuts", s.ListenCuts, 0)
	}
	names, ids, streams, addresses := map[string]string{}, map[ID]string{}, map[ID]string{}, map[string]string{}
	for i := range s.Groups {
		g, at := &s.Groups[i], fmt.Sprintf("source.groups[%d]", i)
		if g.Interval == 0 {
			g.Interval = DefaultInterval
		}
		if g.Window == 0 {
			g.Window = DefaultWindow
		}
		m.name(at+".name", g.Name)
		m.id(at+".id", g.ID)
		m.id(at+".stream", g.Stream)
		m.id(at+".lineage", g.Lineage)
		unique(m, names, at+".name", g.Name, "")
		unique(m, ids, at+".id", g.ID, 0)
		unique(m, streams, at+".stream", g.Stream, 0)
		within(m, at+".interval", g.Interval, MinInterval, MaxInterval)
		within(m, at+".window", g.Window, MinWindow, MaxWindow)
		g.Target.validate(m, at+".target")
		g.Freeze.validate(m, at+".freeze")
		g.validateSources(m, at+".sources", id, addresses)
		if len(g.Filters) == 0 {
			m.add(at+".filters", "is empty")
		}
		sockets := map[string]string{}
		for j, f := range g.Filters {
			where := fmt.Sprintf("%s.filters[%d]", at, j)
			m.socket(where, f)
			unique(m, sockets, where, f, "")
		}
		if len(g.Volumes) == 0 {
			m.add(at+".volumes", "is empty")
		}
		volumeNames, volumeIDs := map[string]string{}, map[uint32]string{}
		for j, v := range g.Volumes {
			m.volume(fmt.Sprintf("%s.volumes[%d]", at, j), v.Name, v.ID, volumeNames, volumeIDs)
		}
	}
}

// volume checks what names a volume within its group.
func (m *mistakes) volume(at, name string, id uint32, names map[string]string, ids map[uint32]string) {
	m.name(at+".name", name)
	unique(m, names, at+".name", name, "")
	if id == 0 {
		m.add(at+".id", "is missing or zero")
	}
	unique(m, ids, at+".id", id, 0)
}

// path checks that a path is there and does not hang on the working directory.
func (m *mistakes) path(where, path string) {
	if path == "" {
		m.add(where, "is missing")
	} else if !filepath.IsAbs(path) {
		m.add(where, "%s: want an absolute path", path)
	}
}

// maxSocketPath is what the kernel takes as the path of a unix socket, in bytes.
const maxSocketPath = 107

// socket checks the path of a unix socket.
func (m *mistakes) socket(where, path string) {
	m.path(where, path)
	if len(path) > maxSocketPath {
		m.add(where, "%s: %d bytes, and a socket's path has at most %d", path, len(path), maxSocketPath)
	}
}

// address checks host:port, the port at least low; without a low port it is one to
// listen on, and needs no host.
func (m *mistakes) address(where, address string, low int) {
	if address == "" {
		m.add(where, "is missing")
		return
	}
	host, port, err := net.SplitHostPort(address)
	n, convErr := strconv.Atoi(port)
	if err != nil || convErr != nil || n < low || n > 65535 || !isHost(host) && (host != "" || low > 0) {
		m.add(where, "%q: want host:port, as in 192.0.2.1:4007", address)
	}
}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// isHost says whether it is an address, or can be a name: that does not consist of numbers alone.
func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return hostPattern.MatchString(host) && strings.Trim(host, "0123456789.") != ""
}

func or(v, otherwise string) string {
	if v == "" {
		return otherwise
	}
	return v
}
