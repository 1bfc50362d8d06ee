package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// mirrored is the peer of replication: qemu-storage-daemon with the same export as the other peer's, and a mirror
// job in background mode whose target is a qemu-nbd of the second site, over TCP and not encrypted. Its target
// file lies in memory, as the store of our target does.
type mirrored struct {
	server
	monitor      *monitor
	source, copy string // files
}

const (
	mirrorJob  = "mirror"
	mirrorDisk = "mirror.raw"
)

// openMirror starts the peer. Both its files hold the same before.
func (b *bench) openMirror() (m *mirrored, err error) {
	m = &mirrored{server: server{vhost: filepath.Join(b.run, "mirror")}, source: filepath.Join(b.Dir, mirrorDisk), copy: filepath.Join(b.run, mirrorDisk)}
	for _, name := range []string{m.source, m.copy} {
		if err := b.fillFile(name); err != nil {
			return nil, err
		}
	}
	target, err := b.serveNBD(m.copy, "writeback")
	if err != nil {
		return nil, err
	}
	at, err := nbd.ParseURI(target.nbd)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(at.Address)
	if err != nil {
		return nil, err
	}
	qmp := filepath.Join(b.run, "mirror-qmp")
	err = b.start(exec.CommandContext(b.Context, "qemu-storage-daemon",
		"--chardev", "socket,id=qmp,server=on,wait=off,path="+qmp, "--monitor", "chardev=qmp",
		"--blockdev", "driver=file,node-name=file,filename="+m.source+",cache.direct=on,aio=native",
		"--blockdev", "driver=raw,node-name=raw,file=file",
		"--blockdev", fmt.Sprintf("driver=nbd,node-name=target,server.type=inet,server.host=%s,server.port=%s", host, port),
		"--export", "type=vhost-user-blk,id=disk,node-name=raw,writable=on,addr.type=unix,addr.path="+m.vhost), &m.server)
	if err != nil {
		return nil, err
	}
	m.all = append(m.all, target.pid)
	if m.monitor, err = dialMonitor(qmp); err != nil {
		return nil, err
	}
	b.stop = append(b.stop, m.monitor.conn.Close)
	return m, m.monitor.do("blockdev-mirror", map[string]any{
		"job-id": mirrorJob, "device": "raw", "target": "target", "sync": "none", "copy-mode": "background", // both hold the same
	}, nil)
}

// monitor is a connection to QEMU's monitor, for one command at a time.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

func dialMonitor(socket string) (*monitor, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	m := &monitor{c, json.NewDecoder(c)}
	if err := m.do("qmp_capabilities", map[string]any{}, nil); err != nil { // its greeting is passed over
		return nil, errors.Join(err, c.Close())
	}
	return m, nil
}

// do carries a command out and reads what it returns into result, unless that is nil. Events are passed over.
func (m *monitor) do(command string, arguments map[string]any, result any) error {
	const limit = 10 * time.Second
	if err := m.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if err := json.NewEncoder(m.conn).Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var said struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := m.in.Decode(&said); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case said.Error != nil:
			return fmt.Errorf("%s: %s", command, said.Error.Desc)
		case said.Return == nil:
		case result == nil:
			return nil
		default:
			return json.Unmarshal(said.Return, result)
		}
	}
}

// fillFile makes a file of the disks' size that is written whole.
func (b *bench) fillFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); at < b.size; at += int64(len(b.data)) {
		if _, err := f.Write(b.data[:min(int64(len(b.data)), b.size-at)]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// serveNBD has a qemu-nbd serve a file at a port of its own, with QEMU's mode of caching.
func (b *bench) serveNBD(file, cache string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	const clients = 16
	s := &server{nbd: fmt.Sprintf("nbd://127.0.0.1:%d", port)}
	return s, b.start(exec.CommandContext(b.Context, "qemu-nbd", "--format=raw", "--persistent", fmt.Sprintf("--shared=%d", clients), "--cache="+cache,
		"--aio=threads", "--discard=unmap", "--bind=127.0.0.1", fmt.Sprintf("--port=%d", port), file), s)
}

// done waits until the mirror's target has all that the guest wrote: nothing is dirty and nothing under way.
func (m *mirrored) done(b *bench) error {
	for end := time.Now().Add(2 * time.Minute); ; {
		var jobs []struct {
			Status      string
			Len, Offset int64
			Busy        bool
		}
		if err := m.monitor.do("query-block-jobs", map[string]any{}, &jobs); err != nil {
			return err
		}
		if len(jobs) != 1 || jobs[0].Status != "ready" {
			return fmt.Errorf("the mirror's job: %+v", jobs)
		}
		if jobs[0].Len == jobs[0].Offset && !jobs[0].Busy {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the mirror is not done: %+v", jobs)
		}
		if err := b.sleep(20 * time.Millisecond); err != nil {
			return err
		}
	}
}

// replicated is a load, and when the second site had all of it.
type replicated struct {
	wrote
	arrived time.Duration // after the load's end
}

// through is the rate until all had arrived.
func (r replicated) through() float64 {
	return float64(r.Requests) / (r.Took + r.arrived).Seconds()
}

// replicate holds a guest's writes while they are replicated against those under a background mirror.
func (b *bench) replicate(row string, l guest.Load) error {
	if err := b.open(); err != nil {
		return err
	}
	if b.mirror == nil {
		m, err := b.openMirror()
		if err != nil {
			return err
		}
		b.mirror = m
	}
	l.Duration = b.length
	err := bars.Pairs(b.Run,
		func() (r replicated, foreign float64, err error) {
			if foreign, err = b.write(&r.wrote, b.on, l, nil); err != nil {
				return r, foreign, err
			}
			from := time.Now()
			err = b.inStep(b.lab)
			r.arrived = time.Since(from)
			return r, foreign, err
		},
		func() (r replicated, foreign float64, err error) {
			if err = b.settled(); err != nil {
				return r, 0, err
			}
			if foreign, err = b.drive(&r.wrote, &b.mirror.server, l); err != nil {
				return r, foreign, err
			}
			from := time.Now()
			err = b.mirror.done(b)
			r.arrived = time.Since(from)
			return r, foreign, err
		},
		func(ours, peer replicated, foreign float64) {
			b.Sample(bars.Sample{Row: row, Value: ours.rate() / peer.rate(), Ours: ours.rate(), Peer: peer.rate(), OursUnit: "IOPS", Foreign: foreign,
				Note: fmt.Sprintf("%s; until the second site had all: %.0f and %.0f IOPS, %.2fx", ours.Note, ours.through(), peer.through(), ours.through()/peer.through())})
		})
	if err != nil {
		return err
	}
	return bars.SameFiles(b.Context, b.mirror.source, b.mirror.copy)
}
