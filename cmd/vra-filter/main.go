// Command vra-filter stands in the write path of a group's guests: it serves their
// disks over NBD, or to virtual machines that share their memory with it (vhost-user-blk), and
// splits each write to the VRA of this host. Or a guest keeps its own way to its disk, and its QEMU mirrors each write
// to the filter, over NBD.
//
//	vra-filter --config FILE [--check-config] [--log-file FILE]
//
// It logs to stderr and closes cleanly on SIGINT or SIGTERM: what is in flight is
// answered, and the marks are noted to be whole. Killed, it loses no mark either: its
// successor makes everything dirty that was not known to be at the target. When a queue does not
// turn for a second it ends itself: whoever supervises it starts it again at once. On SIGHUP it
// reads its file again: the log level changes at once, and where anything else differs
// the file is refused; and a disk that was made larger is served with its new size. Under systemd it tells when it serves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/systemd"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func main() { daemon.Main("vra-filter", run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := daemon.NewFlags("vra-filter")
	if done, err := flags.Take(args, stdout, stderr); done || err != nil {
		return err
	}
	cfg, err := config.LoadFilter(flags.File)
	if err != nil {
		return err
	}
	if done, err := flags.Checked(cfg.CheckFiles(), stdout); done || err != nil {
		return err
	}
	log, level, logged := flags.Log(stderr, cfg.LogLevel.Level())
	defer logged()
	log = log.With("group", cfg.Group.Name)
	notify, err := systemd.FromEnvironment(log)
	if err != nil {
		return err
	}
	return serve(ctx, &live{file: flags.File, cfg: cfg, level: level}, notify, log)
}

// serve opens the disks and serves them until ctx ends. The fronts stop first, so that
// the filter closes with nothing in flight.
func serve(ctx context.Context, live *live, notify *systemd.Notifier, log *slog.Logger) (err error) {
	cfg := live.cfg
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return err
	}
	filter, err := openFilter(ctx, cfg, liveWait, log)
	if ctx.Err() != nil && err != nil {
		return nil // asked to
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, filter.Close()) }()
	fronts, err := openFronts(cfg, filter, log)
	if err != nil {
		return err
	}
	live.log = log
	live.grow = func() ([]string, error) {
		return filter.Grow(func(volume string) {
			for _, f := range fronts {
				if f.volume == volume {
					f.resized()
				}
			}
		})
	}
	run, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	defer fail(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			filter.Settle() // guests are served meanwhile, and Close finds little left to sync
			fail(nil)
		case <-run.Done():
		}
	})
	part := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(run); err != nil {
				fail(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("pool", filter.Run)
	part("watchdog", func(ctx context.Context) error { return filter.Guard(ctx, func(volume string) { hangs(volume, log) }) })
	for _, f := range fronts {
		part(f.name, func(ctx context.Context) error { return f.serve(ctx, f.listener) })
	}
	part("reload", func(ctx context.Context) error {
		notify.Reload(ctx, "serves", live.read, log)
		return nil
	})
	log.Info("vra-filter runs", "volumes", len(cfg.Volumes), "pool", cfg.Pool)
	wg.Wait()
	log.Info("vra-filter ends")
	if ctx.Err() != nil {
		return nil // asked to
	}
	return context.Cause(run)
}

// hangs ends the process, and shows where it stood: a supervisor starts it anew, and the guest goes on.
func hangs(volume string, log *slog.Logger) {
	log.Error("a queue's loop does not turn any more: the process ends, to be started again", "volume", volume)
	_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
	select {} // whatever keeps it from ending, the kernel's timer does not
}

func filterConfig(cfg *config.Filter, log *slog.Logger) capture.FilterConfig {
	c := capture.FilterConfig{
		RunDir:     cfg.RunDir,
		Group:      record.GroupID(cfg.Group.ID),
		PoolBytes:  int64(cfg.Pool),
		PoolSocket: cfg.PoolSocket,
		FS:         ioengine.OS(),
		Log:        log,
		Dial:       dialSource,
	}
	for _, v := range cfg.Volumes {
		c.Volumes = append(c.Volumes, capture.FilterVolume{ID: record.VolumeID(v.ID), Name: v.Name, Path: v.Path, Log: v.LogPath(), Mirror: int64(v.Mirror), Writeback: v.Writeback()})
	}
	return c
}

// dialSource connects to where a guest's QEMU lets its disk be read.
func dialSource(ctx context.Context, uri, bitmap string) (capture.Source, error) {
	if bitmap != "" {
		return nbd.DialBitmap(ctx, uri, bitmap)
	}
	return nbd.Dial(ctx, uri)
}

// served is one socket and what answers there.
type served struct {
	name     string
	listener *net.UnixListener
	serve    func(context.Context, *net.UnixListener) error
	volume   string // whose guest resized tells of a new size; empty: that is told at connecting alone
	resized  func()
}

// openFronts listens on every socket.
func openFronts(cfg *config.Filter, filter *capture.Filter, log *slog.Logger) (fronts []served, err error) {
	defer func() {
		if err != nil {
			for _, f := range fronts {
				f.listener.Close()
			}
		}
	}()
	group, err := cfg.SocketGID()
	if err != nil {
		return nil, err
	}
	add := func(name, socket string, serve func(context.Context, *net.UnixListener) error) error {
		listener, err := daemon.Listen(socket, group)
		if err == nil {
			fronts = append(fronts, served{name: name + " " + socket, listener: listener, serve: serve})
		}
		return err
	}
	nbds := make(map[string]*nbd.Server)
	for _, v := range cfg.Volumes {
		device := filter.Device(v.Name)
		if v.NBD != "" {
			server, shared := nbds[v.NBD] // with a volume before
			if !shared {
				server = &nbd.Server{Log: log}
				nbds[v.NBD] = server
			}
			err := server.Add(nbd.Export{Name: v.Name, Device: device})
			if err == nil && !shared {
				err = add("nbd", v.NBD, func(ctx context.Context, l *net.UnixListener) error { return server.Serve(ctx, l) })
			}
			if err != nil {
				return fronts, err
			}
		}
		if v.VhostUser != "" {
			server := &vhostuser.Server{Device: device, Name: v.Name, Log: log.With("volume", v.Name)}
			if err := add("vhost-user", v.VhostUser, server.Serve); err != nil {
				return fronts, err
			}
			last := &fronts[len(fronts)-1]
			last.volume, last.resized = v.Name, server.Resized
		}
	}
	return fronts, nil
}
