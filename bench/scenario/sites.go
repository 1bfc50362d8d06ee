package scenario

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// The two sites of a lab, the folders of their things, and their VRAs' names.
const (
	sourceSite = "production"
	targetSite = "recovery"
	sourceVRA  = "vra-1"
	targetVRA  = "vra-1"
	roleVRA    = "vra" // in certificates
)

// Names of the daemons.
const (
	daemonFilter = "vra-filter"
	daemonTarget = "vra-target"
	daemonSource = "vra-source"

	daemonSourceSidecar = "sidecar-source"
	daemonTargetSidecar = "sidecar-target"
)

// Ports of a lab. The link listens in the source's stead on the first two.
const (
	portLinkControl   = "link-control"
	portLinkData      = "link-data"
	portTargetControl = "target-control"
	portTargetData    = "target-data"
)

// leafLife is how long the lab's certificates are good for: labs are short.
const leafLife = 365 * 24 * time.Hour

// runPath is a place in the runtime folder.
func (m *manifest) runPath(name string) string { return filepath.Join(m.RunDir, name) }

// The sockets in the runtime folder.
const (
	supervisorSocket = "supervisor.sock"
	sourceSocket     = "production.sock"
	targetSocket     = "recovery.sock"

	sourceSidecarSocket = "production-sidecar.sock"
	targetSidecarSocket = "recovery-sidecar.sock"
	poolSocket          = "pool.sock"
)

func diskSocket(v Volume) string  { return fmt.Sprintf("disk%d.sock", v.ID) }
func vhostSocket(v Volume) string { return fmt.Sprintf("vhost%d.sock", v.ID) }

// nbdURI is the URI of an export on a unix socket. Neither part needs escaping: names
// are checked, and the socket lies in a runtime folder.
func nbdURI(name, socket string) string { return "nbd+unix:///" + name + "?socket=" + socket }

// writeSites makes the folders, keys and configuration of both sites and the context.
func (m *manifest) writeSites(dir string, o *Options) error {
	for _, e := range []fileName{
		{"logs", kindTree}, {jobsName, kindTree}, {sourceSite, kindTree}, {targetSite, kindTree},
		{"etc", kindFolder}, {keysOf(sourceSite), kindFolder}, {keysOf(targetSite), kindFolder},
	} {
		if err := m.name(dir, e.Path, e.Kind); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, e.Path), 0o700); err != nil {
			return err
		}
	}
	folders := []string{filepath.Join(dir, sourceSite, "data"), filepath.Join(dir, targetSite, "data")}
	if o.TargetStore == "" {
		folders = append(folders, o.store(dir))
	}
	for _, folder := range folders {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return err
		}
	}
	if err := m.makeSiteRunDirs(); err != nil {
		return err
	}
	if err := m.writeKeys(dir); err != nil {
		return err
	}
	source, target, filter := m.configs(dir, o)
	context := &config.Context{
		Group: m.Group, Lab: dir, Recovery: filepath.Join(dir, jobsName), Ports: m.Ports, Filters: []string{filepath.Join(dir, fileFilter)},
		VRAs: []config.ContextVRA{
			{Site: sourceSite, Role: "source", Socket: m.runPath(sourceSocket)},
			{Site: targetSite, Role: "target", Socket: m.runPath(targetSocket)},
		},
	}
	remote := *context
	remote.VRAs = m.remote(dir)
	for _, f := range []struct {
		path string
		c    interface{ Validate() error }
	}{
		{fileSource, source},
		{fileFilter, filter},
		{fileTarget, target},
		{fileSourceSidecar, m.sidecar(dir, sourceSite)},
		{fileTargetSidecar, m.sidecar(dir, targetSite)},
		{contextName, context},
		{remoteName, &remote},
	} {
		if err := f.c.Validate(); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		text, err := config.Marshal(f.c)
		if err != nil {
			return err
		}
		if err := m.name(dir, f.path, kindFile); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f.path), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// makeSiteRunDirs makes the folders of both sites in the runtime folder.
func (m *manifest) makeSiteRunDirs() error {
	for _, site := range []string{sourceSite, targetSite} {
		if err := os.Mkdir(m.runPath(site), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// Files that the lab writes for the daemons and the user.
var (
	fileFilter  = filepath.Join("etc", "vra-filter.yaml")
	fileTarget  = filepath.Join("etc", "vra-target.yaml")
	fileSource  = filepath.Join("etc", "vra-source.yaml")
	contextName = "context.yaml"
	jobsName    = "jobs"        // of recovery
	remoteName  = "remote.yaml" // the same, by the sidecars

	fileSourceSidecar = filepath.Join("etc", "sidecar-source.yaml")
	fileTargetSidecar = filepath.Join("etc", "sidecar-target.yaml")
)

// keysOf is the folder of a site's certificates and keys.
func keysOf(site string) string { return filepath.Join("etc", site) }

// writeKeys makes a CA for each site and a leaf for each VRA, and has the sites join each
// other as real ones do.
func (m *manifest) writeKeys(dir string) error {
	now := time.Now()
	var authorities []*pairing.CA
	for _, site := range []struct{ name, vra string }{{sourceSite, sourceVRA}, {targetSite, targetVRA}} {
		at := func(name string) string { return filepath.Join(keysOf(site.name), name) }
		for _, name := range []string{"ca.pem", "ca-key.pem", "cert.pem", "key.pem", "peer.pem", "sidecar.pem", "sidecar-key.pem", "admin.pem", "admin-key.pem", "monitor.pem", "monitor-key.pem"} {
			if err := m.name(dir, at(name), kindFile); err != nil {
				return err
			}
		}
		ca, err := pairing.NewCA(site.name, now)
		if err != nil {
			return err
		}
		if err := ca.Save(filepath.Join(dir, at("ca.pem")), filepath.Join(dir, at("ca-key.pem"))); err != nil {
			return err
		}
		authorities = append(authorities, ca)
		leaf, err := ca.Issue(pairing.Identity{Role: roleVRA, ID: site.vra}, now, leafLife)
		if err != nil {
			return err
		}
		if err := leaf.Save(filepath.Join(dir, at("cert.pem")), filepath.Join(dir, at("key.pem"))); err != nil {
			return err
		}
		// The sidecar, and who may call it.
		for _, who := range []pairing.Identity{{Role: api.RoleSidecar, ID: site.vra}, {Role: api.RoleAdmin, ID: "lab"}, {Role: api.RoleMonitor, ID: "lab"}} {
			leaf, err := ca.IssueAt(who, pairing.Hosts{"127.0.0.1", "localhost"}, now, leafLife)
			if err != nil {
				return err
			}
			if err := leaf.Save(filepath.Join(dir, at(who.Role+".pem")), filepath.Join(dir, at(who.Role+"-key.pem"))); err != nil {
				return err
			}
		}
	}
	return joinSites(dir, authorities[1], authorities[0])
}

// joinSites has one site invite and the other join, and each keep the other's CA.
func joinSites(dir string, inviting, joining *pairing.CA) error {
	inviter := pairing.NewInviter(pairing.Site{CA: inviting})
	token, err := inviter.Invite(pairing.DefaultTokenLife)
	if err != nil {
		return err
	}
	near, far := net.Pipe()
	type accepted struct {
		peer *pairing.Peer
		err  error
	}
	came := make(chan accepted, 1)
	go func() {
		peer, err := inviter.Accept(context.Background(), far)
		came <- accepted{peer, err}
	}()
	peer, err := pairing.Join(context.Background(), near, token, pairing.Site{CA: joining})
	theirs := <-came
	if err := errors.Join(err, theirs.err); err != nil {
		return err
	}
	return errors.Join(
		pairing.SavePEM(filepath.Join(dir, keysOf(joining.Site()), "peer.pem"), peer.CertPEM()),
		pairing.SavePEM(filepath.Join(dir, keysOf(inviting.Site()), "peer.pem"), theirs.peer.CertPEM()),
	)
}

// configs are the files of the three daemons.
func (m *manifest) configs(dir string, o *Options) (source, target *config.VRA, filter *config.Filter) {
	group := randomID()
	source = m.vra(dir, sourceSite, sourceVRA, targetSite, sourceSocket)
	target = m.vra(dir, targetSite, targetVRA, sourceSite, targetSocket)
	target.Target = &config.Target{
		ListenControl: loopback(m.Ports[portTargetControl]),
		ListenData:    loopback(m.Ports[portTargetData]),
		Store:         o.store(dir),
	}
	sg := config.SourceGroup{
		Name: m.Group, ID: group, Stream: randomID(), Lineage: randomID(), Interval: o.Interval,
		Target:  m.linkEnds(),
		Filters: []string{m.runPath(poolSocket)},
	}
	filter = &config.Filter{
		RunDir: m.runPath(sourceSite), Group: config.FilterGroup{Name: m.Group, ID: group}, PoolSocket: m.runPath(poolSocket),
	}
	for _, v := range m.Volumes {
		sg.Volumes = append(sg.Volumes, config.SourceVolume{Name: v.Name, ID: v.ID})
		filter.Volumes = append(filter.Volumes, config.FilterVolume{
			Name: v.Name, ID: v.ID, Path: filepath.Join(dir, v.Disk), NBD: m.runPath(diskSocket(v)), VhostUser: v.VhostUser, Cache: o.Cache,
		})
	}
	source.Source = &config.Source{Groups: []config.SourceGroup{sg}, Compression: o.Compression}
	return source, target, filter
}

// linkEnds is where the source dials: the link listens in the target's stead.
func (m *manifest) linkEnds() config.Endpoint {
	if m.direct() {
		return config.Endpoint{Control: loopback(m.Ports[portTargetControl]), Data: loopback(m.Ports[portTargetData])}
	}
	return config.Endpoint{Control: loopback(m.Ports[portLinkControl]), Data: loopback(m.Ports[portLinkData])}
}

// direct says that there is no link.
func (m *manifest) direct() bool { return m.Link == directLink }

func (m *manifest) vra(dir, site, id, peer, socket string) *config.VRA {
	at := filepath.Join(dir, keysOf(site))
	return &config.VRA{
		Site: site, ID: id, DataDir: filepath.Join(dir, site, "data"), RunDir: m.runPath(site), Socket: m.runPath(socket),
		TLS: config.TLS{
			CA: filepath.Join(at, "ca.pem"), Cert: filepath.Join(at, "cert.pem"), Key: filepath.Join(at, "key.pem"),
			PeerCA: filepath.Join(at, "peer.pem"), PeerSite: peer,
		},
	}
}

// daemonList is what the supervisor runs. All start together, each waits for the
// others by itself; they are ended in the reverse order, the source first.
func (m *manifest) daemonList(dir string) []*daemon {
	run := func(name, binary, file string) *daemon {
		return &daemon{Name: name, Command: []string{filepath.Join(m.Binaries, binary), "--config", filepath.Join(dir, file)}}
	}
	list := []*daemon{
		run(daemonFilter, "vra-filter", fileFilter),
		run(daemonTarget, "vra", fileTarget),
		run(daemonSource, "vra", fileSource),
	}
	// A lab of before there were any has none.
	for name, file := range map[string]string{daemonSourceSidecar: fileSourceSidecar, daemonTargetSidecar: fileTargetSidecar} {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			list = append(list, run(name, "vra-sidecar", file))
		}
	}
	slices.SortStableFunc(list[3:], func(a, b *daemon) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// sidecarPort names a port of the sidecar of a site.
func sidecarPort(site, what string) string { return site + "-" + what }

// socketsOf are where the vra and the sidecar of a site answer, and daemonOf is the name of the former.
func socketsOf(site string) (vra, sidecar, daemon, ownDaemon string) {
	if site == sourceSite {
		return sourceSocket, sourceSidecarSocket, daemonSource, daemonSourceSidecar
	}
	return targetSocket, targetSidecarSocket, daemonTarget, daemonTargetSidecar
}

// sidecar is the file of the sidecar of a site.
func (m *manifest) sidecar(dir, site string) *config.Sidecar {
	at := filepath.Join(dir, keysOf(site))
	vra, own, daemon, ownDaemon := socketsOf(site)
	listen := func(what string) string { return loopback(m.Ports[sidecarPort(site, what)]) }
	c := &config.Sidecar{
		ID: sourceVRA, VRASocket: m.runPath(vra), Socket: m.runPath(own), DataDir: filepath.Join(dir, site, "sidecar"),
		TLS:     config.SidecarTLS{CA: filepath.Join(at, "ca.pem"), Cert: filepath.Join(at, "sidecar.pem"), Key: filepath.Join(at, "sidecar-key.pem")},
		Listen:  config.SidecarListen{Logs: listen("logs"), Commands: listen("commands"), Checkpoints: listen("checkpoints")},
		Logs:    []config.SidecarLog{{Name: "vra", Path: logPath(dir, daemon)}, {Name: "vra-sidecar", Path: logPath(dir, ownDaemon)}},
		Configs: []string{filepath.Join(dir, "etc", daemon+".yaml")},
	}
	if site == sourceSite {
		c.Logs = append(c.Logs, config.SidecarLog{Name: "vra-filter", Path: logPath(dir, daemonFilter)})
		c.Configs = append(c.Configs, filepath.Join(dir, fileFilter))
	}
	return c
}

// remote are both VRAs by their sidecars.
func (m *manifest) remote(dir string) (vras []config.ContextVRA) {
	for _, v := range []config.ContextVRA{{Site: sourceSite, Role: "source"}, {Site: targetSite, Role: "target"}} {
		own := m.sidecar(dir, v.Site)
		at, listen := filepath.Join(dir, keysOf(v.Site)), own.Listen
		v.Sidecar = &config.ContextSidecar{
			ID:       own.ID,
			Commands: listen.Commands, Checkpoints: listen.Checkpoints, Logs: listen.Logs,
			TLS: config.SidecarTLS{CA: filepath.Join(at, "ca.pem"), Cert: filepath.Join(at, "admin.pem"), Key: filepath.Join(at, "admin-key.pem")},
		}
		vras = append(vras, v)
	}
	return vras
}

// randomID draws an identifier that is not zero.
func randomID() config.ID {
	for {
		var b [8]byte
		rand.Read(b[:])
		if id := config.ID(binary.LittleEndian.Uint64(b[:])); id != 0 {
			return id
		}
	}
}
