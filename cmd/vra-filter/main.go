// Command vra-filter stands in the write path of a group's guests: it serves their
// disks over NBD, or to virtual machines that share their memory with it (vhost-user-blk), and
// splits each write to the VRA of this host.
//
//	vra-filter --config FILE [--check-config]
//
// It logs to stderr and closes cleanly on SIGINT or SIGTERM: what is in flight is
// answered, and the marks are noted to be whole. Killed, it loses no mark either: its
// successor makes everything dirty that was not known to be at the target. When a queue does not
// turn for a second it ends itself: whoever supervises it starts it again at once. On SIGHUP it
// reads its file again: the log level changes at once, and where anything else differs
// the file is refused. Under systemd it tells when it serves.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/systemd"
	"github.com/holdfast-dr/holdfast/control/version"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func main() {
	systemd.HoldReloads()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "vra-filter:", strings.ReplaceAll(err.Error(), "\n", "\nvra-filter: "))
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("try vra-filter --help")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("vra-filter", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is told once, by main
	file := flags.String("config", "", "the configuration, a YAML `file`")
	check := flags.Bool("check-config", false, "check the configuration and the files it names, say what is wrong, and end")
	printVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "Usage of vra-filter:")
			flags.SetOutput(stderr)
			flags.PrintDefaults()
			return err
		}
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	if *printVersion {
		_, err := fmt.Fprintln(stdout, "vra-filter", version.Read())
		return err
	}
	if *file == "" || flags.NArg() > 0 {
		return fmt.Errorf("--config is needed and nothing else: %w", errUsage)
	}
	cfg, err := config.LoadFilter(*file)
	if err != nil {
		return err
	}
	// Before anything is made: what cannot run leaves nothing behind.
	if err := cfg.CheckFiles(); err != nil {
		return config.InFile(*file, err)
	}
	if *check {
		_, err := fmt.Fprintln(stdout, "config ok")
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel.Level())
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})).With("group", cfg.Group.Name)
	notify, err := systemd.FromEnvironment(log)
	if err != nil {
		return err
	}
	return serve(ctx, &live{file: *file, cfg: cfg, level: level}, notify, log)
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
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
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
	}
	for _, v := range cfg.Volumes {
		c.Volumes = append(c.Volumes, capture.FilterVolume{ID: record.VolumeID(v.ID), Name: v.Name, Path: v.Path, Log: v.LogPath()})
	}
	return c
}

// served is one socket and what answers there.
type served struct {
	name     string
	listener *net.UnixListener
	serve    func(context.Context, *net.UnixListener) error
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
		listener, err := listen(socket, group)
		if err == nil {
			fronts = append(fronts, served{name + " " + socket, listener, serve})
		}
		return err
	}
	for _, v := range cfg.Volumes {
		device := filter.Device(v.Name)
		if v.NBD != "" {
			server := &nbd.Server{Log: log}
			if err := server.Add(nbd.Export{Name: v.Name, Device: device}); err != nil {
				return fronts, err
			}
			if err := add("nbd", v.NBD, func(ctx context.Context, l *net.UnixListener) error { return server.Serve(ctx, l) }); err != nil {
				return fronts, err
			}
		}
		if v.VhostUser != "" {
			server := &vhostuser.Server{Device: device, Name: v.Name, Log: log.With("volume", v.Name)}
			if err := add("vhost-user", v.VhostUser, server.Serve); err != nil {
				return fronts, err
			}
		}
	}
	return fronts, nil
}

// listen opens the unix socket for its owner, and for the group of that number unless it is -1. We hold the disks by now: a socket
// that stands there is a dead filter's, unless somebody answers on it.
func listen(path string, group int) (*net.UnixListener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: another process serves there; stop it, or name another socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if group >= 0 {
		mode = 0o660
		if err := os.Chown(path, -1, group); err != nil {
			return nil, errors.Join(fmt.Errorf("socket_group: %w: run the filter as a member of that group", err), l.Close())
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
