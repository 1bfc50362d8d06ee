// Command vra-sidecar speaks for the vra of its machine, over mutual TLS and on a unix socket: commands and
// status on port 4006, checkpoints on 4009, logs on 4005.
//
//	vra-sidecar --config FILE [--check-config | --check-audit] [--log-file FILE]
//
// It logs to stderr, reads its certificates again on SIGHUP, and ends in good order on SIGINT or SIGTERM. A file that
// differs is refused on SIGHUP: a restart costs nobody anything. Under systemd it tells when it answers, and that it does.
// Replication goes on without it: it may be killed, and started before or after the vra.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/sidecar"
	"github.com/holdfast-dr/holdfast/control/systemd"
)

func main() { daemon.Main("vra-sidecar", run) }

// memory is what the runtime tries to keep to, in bytes: the sidecar shares its machine with guests.
const memory = 64 << 20

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := daemon.NewFlags("vra-sidecar")
	audit := flags.Bool("check-audit", false, "hold all audit records to each other, say how many there are, and end; not while it runs")
	if done, err := flags.Take(args, stdout, stderr); done || err != nil {
		return err
	}
	cfg, err := config.LoadSidecar(flags.File)
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
	if done, err := flags.Checked(sidecar.CheckFiles(cfg), stdout); done || err != nil {
		return err
	}
	debug.SetMemoryLimit(memory)
	log, _, logged := flags.Log(stderr, slog.LevelInfo)
	defer logged()
	return serve(ctx, flags.File, cfg, log.With("sidecar", cfg.ID))
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
