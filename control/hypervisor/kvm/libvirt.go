package kvm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	raster "image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Libvirt runs machines as domains of a libvirt of this host. Of each it keeps, in a folder of its own,
//
//	NAME/machine.json  the definition
//	NAME/serial        all that it said, written by QEMU or by virtlogd
//
// A domain is found by its UUID, which follows from the folder and the name: domains that somebody else
// has defined are never touched, whatever their names. Each call has a connection of its own.
type Libvirt struct {
	socket, uri, dir string
	kvm              bool
}

var _ hypervisor.Hypervisor = (*Libvirt)(nil)

// Where a host's libvirt is found by default.
const (
	LibvirtSocket = "/var/run/libvirt/libvirt-sock"
	LibvirtURI    = "qemu:///system"
)

// NewLibvirt makes a driver for the libvirt at a socket, of the given connection URI (both empty: the
// host's), that keeps what it must know in dir, which it makes when it is needed.
func NewLibvirt(socket, uri, dir string) (*Libvirt, error) {
	dir, err := filepath.Abs(dir)
	return &Libvirt{socket: cmp.Or(socket, LibvirtSocket), uri: cmp.Or(uri, LibvirtURI), dir: dir, kvm: lendsProcessor()}, err
}

// Open makes the driver that a plan names, for machines of a folder.
func Open(where config.Hypervisor, dir string) (hypervisor.Hypervisor, error) {
	if where.Libvirt() {
		return NewLibvirt(where.Socket, where.URI, dir)
	}
	return NewLocal(dir, DefaultQEMU)
}

// files is what both drivers of this package do alike with a machine's folder.
func (l *Libvirt) files() *Local { return &Local{dir: l.dir} }

// uuid is the name under which libvirt knows a machine, whatever else it has.
func (l *Libvirt) uuid(name string) (id libvirt.UUID) {
	sum := sha256.Sum256([]byte(l.dir + "\x00" + name))
	copy(id[:], sum[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8: of our own making
	return id
}

// dialed gives a connection that stands to the library.
type dialed struct{ net.Conn }

func (d dialed) Dial() (net.Conn, error) { return d.Conn, nil }

// with connects, until do returns or ctx ends.
func (l *Libvirt) with(ctx context.Context, do func(*libvirt.Libvirt) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", l.socket)
	if err != nil {
		return fmt.Errorf("libvirt: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // it ends whatever waits for an answer
	c := libvirt.NewWithDialer(dialed{conn})
	if err = c.ConnectToURI(libvirt.ConnectURI(l.uri)); err == nil {
		err = do(c)
		if ctx.Err() == nil {
			_ = c.Disconnect() // everything was answered
		}
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

// domain does something with a machine's domain. ErrAbsent.
func (l *Libvirt) domain(ctx context.Context, name string, do func(*libvirt.Libvirt, libvirt.Domain) error) error {
	if _, err := l.files().folder(name); err != nil {
		return err
	}
	err := l.with(ctx, func(c *libvirt.Libvirt) error {
		d, err := c.DomainLookupByUUID(l.uuid(name))
		if libvirt.IsNotFound(err) {
			return hypervisor.ErrAbsent
		}
		if err != nil {
			return err
		}
		return do(c, d)
	})
	if err != nil {
		err = fmt.Errorf("machine %s: %w", name, err)
	}
	return err
}

// Check says what is wrong with a definition.
func (l *Libvirt) Check(m hypervisor.Machine) error {
	m.Disks = nil
	_, ferr := l.files().folder(m.Name)
	_, err := l.xml(m)
	return errors.Join(ferr, err)
}

// Shares asks libvirt how old it is.
func (l *Libvirt) Shares(ctx context.Context) error {
	return l.with(ctx, func(c *libvirt.Libvirt) error {
		v, err := c.ConnectGetLibVersion()
		if err == nil {
			err = shares(v)
		}
		return err
	})
}

// shares says why a libvirt of that version, as it tells it, has no disks over vhost-user.
func shares(version uint64) error {
	const since = 7_001_000
	if version < since && !invariant.Planted("kvm/any-libvirt") {
		return fmt.Errorf("libvirt %d.%d knows no disks over vhost-user, and 7.1 does", version/1_000_000, version/1000%1000)
	}
	return nil
}

// Define makes a domain of the definition.
func (l *Libvirt) Define(ctx context.Context, m hypervisor.Machine) error {
	dir, err := l.files().folder(m.Name)
	if err != nil {
		return err
	}
	if _, err := l.xml(m); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	have, rerr := os.ReadFile(filepath.Join(dir, definitionName))
	same := rerr == nil && bytes.Equal(have, text)
	state, err := l.State(ctx, m.Name)
	switch {
	case err != nil:
		return err
	case state != hypervisor.Off && state != hypervisor.Absent:
		if same {
			return nil
		}
		return fmt.Errorf("machine %s runs, with another definition", m.Name)
	case same && state == hypervisor.Off:
		return nil
	}
	if err := l.put(ctx, dir, m); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return nil
}

// put has libvirt start a machine so from now on, and keeps that. One that runs is left as it is.
func (l *Libvirt) put(ctx context.Context, dir string, m hypervisor.Machine) error {
	described, err := l.xml(m)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return err
	}
	err = l.with(ctx, func(c *libvirt.Libvirt) error {
		_, err := c.DomainDefineXMLFlags(described, libvirt.DomainDefineValidate)
		return err
	})
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, definitionName), text)
}

func stateOf(c *libvirt.Libvirt, d libvirt.Domain) (hypervisor.State, error) {
	state, _, err := c.DomainGetState(d, 0)
	if err != nil {
		return "", err
	}
	return asState(libvirt.DomainState(state)), nil
}

func asState(state libvirt.DomainState) hypervisor.State {
	switch state {
	case libvirt.DomainRunning, libvirt.DomainBlocked, libvirt.DomainShutdown:
		return hypervisor.Running
	case libvirt.DomainShutoff:
		return hypervisor.Off
	}
	return hypervisor.Paused // or it crashed, or sleeps
}

// State asks libvirt.
func (l *Libvirt) State(ctx context.Context, name string) (state hypervisor.State, err error) {
	err = l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) (err error) {
		state, err = stateOf(c, d)
		return err
	})
	if errors.Is(err, hypervisor.ErrAbsent) {
		return hypervisor.Absent, nil
	}
	return state, err
}

// Start starts a domain that is off, and lets one go on that is paused.
func (l *Libvirt) Start(ctx context.Context, name string) error {
	err := l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
		state, err := stateOf(c, d)
		if err != nil || state == hypervisor.Running {
			return err
		}
		if state == hypervisor.Paused {
			err = c.DomainResume(d)
		} else {
			err = c.DomainCreate(d)
		}
		if now, serr := stateOf(c, d); err != nil && serr == nil && now == hypervisor.Running {
			return nil // another call was quicker
		}
		return err
	})
	return l.files().unserved(name, err)
}

// Stop presses the power button and waits, or cuts the power.
func (l *Libvirt) Stop(ctx context.Context, name string, how hypervisor.How) error {
	err := l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
		return turnOff(ctx, c, d, how, libvirt.DomainShutdownAcpiPowerBtn)
	})
	if errors.Is(err, hypervisor.ErrAbsent) {
		return nil
	}
	return err
}

// turnOff returns once a domain is off; by says how its guest is asked.
func turnOff(ctx context.Context, c *libvirt.Libvirt, d libvirt.Domain, how hypervisor.How, by libvirt.DomainShutdownFlagValues) error {
	state, err := stateOf(c, d)
	switch {
	case err != nil || state == hypervisor.Off:
		return err
	case how == hypervisor.ByForce:
		err = c.DomainDestroy(d)
	case state == hypervisor.Paused:
		return errPaused
	default:
		err = c.DomainShutdownFlags(d, by)
	}
	if now, serr := stateOf(c, d); err != nil && serr == nil && now == hypervisor.Off {
		return nil // it went off by itself
	}
	if err != nil || invariant.Planted("kvm/domain-stopped-at-once") {
		return err
	}
	return domainOff(ctx, c, d)
}

var errPaused = errors.New("the guest is paused, and would not hear that it is to stop")

// domainOff waits until a domain is off.
func domainOff(ctx context.Context, c *libvirt.Libvirt, d libvirt.Domain) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if state, err := stateOf(c, d); err != nil || state == hypervisor.Off {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("it is not off")
		}
	}
}

// Screenshot has libvirt take a picture, which comes as PPM from one that does not know PNG.
func (l *Libvirt) Screenshot(ctx context.Context, name string) (shot []byte, err error) {
	err = l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
		var p bytes.Buffer
		// The library looks for the kind of picture where libvirt's answer has none: what came shows it.
		if _, err := c.DomainScreenshot(d, &p, 0, 0); err != nil && p.Len() == 0 {
			return err
		}
		shot, err = asPNG(p.Bytes())
		return err
	})
	return shot, err
}

// maxPixels bounds the pictures that are believed.
const maxPixels = 64 << 20

// asPNG makes a PNG of a picture that is one, or a PPM of 8 bits a colour.
func asPNG(p []byte) ([]byte, error) {
	if bytes.HasPrefix(p, []byte("\x89PNG")) {
		return p, nil
	}
	var wide, high, most int
	r := bytes.NewReader(p)
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &wide, &high, &most); err != nil || most != 255 || wide < 1 || high < 1 || wide > maxPixels/high {
		return nil, errors.New("the picture is neither PNG nor PPM")
	}
	pixels := p[len(p)-r.Len():]
	if len(pixels) < 3*wide*high {
		return nil, io.ErrUnexpectedEOF
	}
	picture := raster.NewRGBA(raster.Rect(0, 0, wide, high))
	for i := range wide * high {
		picture.Set(i%wide, i/wide, color.RGBA{pixels[3*i], pixels[3*i+1], pixels[3*i+2], 255})
	}
	var out bytes.Buffer
	err := png.Encode(&out, picture)
	return out.Bytes(), err
}

// Serial reads what the machine said, at most 1 MiB at once.
func (l *Libvirt) Serial(ctx context.Context, name string, off int64) ([]byte, error) {
	return l.files().Serial(ctx, name, off)
}

// Undefine forgets the domain and removes its folder.
func (l *Libvirt) Undefine(ctx context.Context, name string) error {
	dir, err := l.files().folder(name)
	if err != nil {
		return err
	}
	err = l.domain(ctx, name, func(c *libvirt.Libvirt, d libvirt.Domain) error {
		state, err := stateOf(c, d)
		if err == nil && state != hypervisor.Off {
			err = errors.New("it is not off")
		}
		if err != nil {
			return err
		}
		return c.DomainUndefineFlags(d, libvirt.DomainUndefineNvram|libvirt.DomainUndefineManagedSave|
			libvirt.DomainUndefineSnapshotsMetadata|libvirt.DomainUndefineCheckpointsMetadata)
	})
	if err != nil && !errors.Is(err, hypervisor.ErrAbsent) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
