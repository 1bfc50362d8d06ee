package config

import (
	"fmt"
	"os"
	"strings"
)

// Filter is the file of a vra-filter: some volumes of one group on this host.
type Filter struct {
	RunDir     string      `yaml:"run_dir"` // memory-backed: order page, generations, dirty maps
	Group      FilterGroup `yaml:"group"`
	Pool       Size        `yaml:"pool,omitempty"` // of slots, by default 64MiB
	PoolSocket string      `yaml:"pool_socket"`    // where the VRA maps the pool
	// SocketGroup is the group of users that may open the guests' sockets beside the filter's own,
	// as QEMU's under libvirt; by default nobody else may.
	SocketGroup string         `yaml:"socket_group,omitempty"`
	Volumes     []FilterVolume `yaml:"volumes"`
	LogLevel    LogLevel       `yaml:"log_level,omitempty"` // debug, info (the default), warn or error
}

// FilterGroup names the group.
type FilterGroup struct {
	Name string `yaml:"name"`
	ID   ID     `yaml:"id"`
}

// FilterVolume is a guest's disk.
type FilterVolume struct {
	Name string `yaml:"name"`
	ID   uint32 `yaml:"id"`
	Path string `yaml:"path"` // the disk: a raw file or a block device; of a mirror target the guest's image, as its QEMU names it
	// Mirror makes the volume a mirror target, and is how many bytes the guest's disk has: the guest keeps its own way to its image, of whatever
	// format, and its QEMU mirrors each write to the volume (holdfast attach --mirror).
	Mirror Size `yaml:"mirror,omitempty"`
	// Cache is where a write is that was answered: none, the default, on the disk, past the page cache; writeback in the page cache, as QEMU
	// and nbdkit have it: what a guest flushes is on the disk, and what it does not a crash of the host may take.
	Cache string `yaml:"cache,omitempty"`
	// The unix sockets where the guest finds it; one is needed.
	NBD       string `yaml:"nbd,omitempty"`        // over NBD, under the volume's name; volumes may share one
	VhostUser string `yaml:"vhost_user,omitempty"` // as a vhost-user-blk device: through memory shared with the virtual machine
	// ActivityLog is the small file from which is known, after a crash of the host, what must be compared: by default
	// beside a disk that is a file, under its name with ".activity", and none for a block device. "none": all is compared.
	ActivityLog string `yaml:"activity_log,omitempty"`
}

// ActivitySuffix is what the name of a disk's activity log beside it ends with; while it is made, with ".new" behind.
const ActivitySuffix = ".activity"

// noActivityLog is ActivityLog of a volume that has none.
const noActivityLog = "none"

// What Cache may be.
const (
	CacheNone      = "none"
	CacheWriteback = "writeback"
)

// Writeback says that the volume's writes are answered out of the page cache.
func (v *FilterVolume) Writeback() bool { return v.Cache == CacheWriteback }

// LogPath is where the activity log of the volume is; empty for none.
func (v *FilterVolume) LogPath() string {
	switch {
	case v.Mirror > 0 || v.ActivityLog == noActivityLog:
		return ""
	case v.ActivityLog == "":
		if st, err := os.Stat(v.Path); err != nil || !st.Mode().IsRegular() {
			return ""
		}
		return v.Path + ActivitySuffix
	}
	return v.ActivityLog
}

// socketKey is a socket, and the key that names it.
type socketKey struct{ key, path string }

// nbdKey ends the key of a volume's socket of NBD.
const nbdKey = ".nbd"

// sockets are those that the volume has.
func (v *FilterVolume) sockets(at string) (list []socketKey) {
	if v.NBD != "" {
		list = append(list, socketKey{at + nbdKey, v.NBD})
	}
	if v.VhostUser != "" {
		list = append(list, socketKey{at + ".vhost_user", v.VhostUser})
	}
	return list
}

// Defaults and bounds of a filter.
const (
	DefaultPool = Size(64 << 20)
	MinPool     = Size(1 << 20)
	MaxPool     = Size(64 << 30)
)

// LoadFilter reads the file of a vra-filter.
func LoadFilter(path string) (*Filter, error) {
	var c Filter
	if err := load(path, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// ParseFilter reads the text of such a file.
func ParseFilter(text []byte) (*Filter, error) {
	var c Filter
	if err := parse(text, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate fills defaults and tells every mistake.
func (c *Filter) Validate() error {
	var m mistakes
	if c.Pool == 0 {
		c.Pool = DefaultPool
	}
	m.path("run_dir", c.RunDir)
	m.name("group.name", c.Group.Name)
	m.id("group.id", c.Group.ID)
	within(&m, "pool", c.Pool, MinPool, MaxPool)
	m.socket("pool_socket", c.PoolSocket)
	if len(c.Volumes) == 0 {
		m.add("volumes", "is empty")
	}
	names, ids := map[string]string{}, map[uint32]string{}
	paths, sockets := map[string]string{}, map[string]string{c.PoolSocket: "pool_socket"}
	for i, v := range c.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		m.volume(at, v.Name, v.ID, names, ids)
		if v.Mirror != 0 {
			m.mirror(at, &v)
		} else {
			m.path(at+".path", v.Path)
		}
		unique(&m, paths, at+".path", v.Path, "")
		if v.Cache != "" && v.Cache != CacheNone && v.Cache != CacheWriteback {
			m.add(at+".cache", "is %q: want none or writeback", v.Cache)
		}
		if v.ActivityLog != "" && v.ActivityLog != noActivityLog {
			m.path(at+".activity_log", v.ActivityLog)
			unique(&m, paths, at+".activity_log", v.ActivityLog, "")
		}
		if v.NBD == "" && v.VhostUser == "" {
			m.add(at, "has neither nbd nor vhost_user: a guest needs one of these sockets")
		}
		for _, s := range v.sockets(at) {
			m.socket(s.key, s.path)
			if !strings.HasSuffix(s.key, nbdKey) || !strings.HasSuffix(sockets[s.path], nbdKey) { // volumes may share one: each has its name there
				unique(&m, sockets, s.key, s.path, "")
			}
		}
	}
	c.LogLevel.validate(&m)
	return m.err()
}

// mirror tells the mistakes of a mirror target.
func (m *mistakes) mirror(at string, v *FilterVolume) {
	if v.Path == "" {
		m.add(at+".path", "is missing: the guest's image, as its QEMU names it")
	}
	if v.Mirror < 512 || v.Mirror%512 != 0 {
		m.add(at+".mirror", "is %d bytes: want as many as the guest's disk has, a multiple of 512", v.Mirror)
	}
	if v.Writeback() {
		m.add(at+".cache", "is for disks that the filter writes to, and this is a mirror target")
	}
	if v.NBD == "" || v.VhostUser != "" {
		m.add(at, "is a mirror target: QEMU mirrors to an nbd socket, and to no other")
	}
	if v.ActivityLog != "" && v.ActivityLog != noActivityLog {
		m.add(at+".activity_log", "is for disks that the filter writes to, and this is a mirror target")
	}
}
