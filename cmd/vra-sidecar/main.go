// Command vra-sidecar speaks for the vra of its machine, over mutual TLS and on a unix socket: commands and
// status on port 4006, checkpoints on 4009, logs on 4005.
//
//	vra-sidecar --config FILE [--check-config | --check-audit]
//
// It logs to stderr, reads its certificates again on SIGHUP, and ends in good order on SIGINT or SIGTERM. A file that
// differs is refused on SIGHUP: a restart costs nobody anything. Under systemd it tells when it answers, and that it does.
// Replication goes on without it: it may be killed, and started before or after the vra.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/sidecar"
	"github.com/holdfast-dr/holdfast/control/systemd"
	"github.com/holdfast-dr/holdfast/control/version"
)

func main() {
	systemd.HoldReloads()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "vra-sidecar:", strings.ReplaceAll(err.Error(), "\n", "\nvra-sidecar: "))
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("try vra-sidecar --help")

// memory is what the runtime tries to keep to, in bytes: the sidecar shares its machine with guests.
const memory = 64 << 20

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("vra-sidecar", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is told once, by main
	file := flags.String("config", "", "the configuration, a YAML `file`")
	check := flags.Bool("check-config", false, "check the configuration and the files it names, say what is wrong, and end")
	audit := flags.Bool("check-audit", false, "hold all audit records to each other, say how many there are, and end; not while it runs")
	printVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "Usage of vra-sidecar:")
			flags.SetOutput(stderr)
			flags.PrintDefaults()
			return err
		}
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	if *printVersion {
		_, err := fmt.Fprintln(stdout, "vra-sidecar", version.Read())
		return err
	}
	if *file == "" || flags.NArg() > 0 {
		return fmt.Errorf("--config is needed and nothing else: %w", errUsage)
	}
	cfg, err := config.LoadSidecar(*file)
	if err != nil {
		return err
	}
	if *audit {
		n, first, err := sidecar.CheckAudit(cfg.DataDir)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(stdout, "audit ok: %d records, the first is number %d\n", n, first)
		return err
	}
	// Before anything is made: what cannot run leaves nothing behind.
	if err := sidecar.CheckFiles(cfg); err != nil {
		return config.InFile(*file, err)
	}
	if *check {
		_, err := fmt.Fprintln(stdout, "config ok")
		return err
	}
	debug.SetMemoryLimit(memory)
	return serve(ctx, *file, cfg, slog.New(slog.NewTextHandler(stderr, nil)).With("sidecar", cfg.ID))
}

// serve runs until ctx ends, and reads the certificates again on SIGHUP.
func serve(ctx context.Context, file string, cfg *config.Sidecar, log *slog.Logger) error {
	notify, err := systemd.FromEnvironment(log)
	if err != nil {
		return err
	}
	s, err := sidecar.Open(cfg, log)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		notify.Reload(run, "speaks for its vra", func() ([]string, error) {
			next, err := config.LoadSidecar(file)
			if err != nil {
				return nil, err
			}
			if _, err := config.CheckLive(file, cfg, next, cfg.Live); err != nil {
				return nil, err
			}
			return []string{"certificates"}, s.Reload()
		}, log)
	})
	wg.Go(func() { notify.Watch(run, s.Alive) })
	return s.Run(ctx)
}
