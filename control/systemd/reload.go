package systemd

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// early takes a SIGHUP that comes before Reload, and any that comes after it.
var early = make(chan os.Signal, 1)

// HoldReloads keeps SIGHUP from ending the process, for good; one that comes before Reload waits for it. It is what main begins with.
func HoldReloads() { signal.Notify(early, syscall.SIGHUP) }

// Reload has read called at each SIGHUP until ctx ends, and tells the manager. read returns which keys of the configuration changed, or
// why the whole of it is refused: then what was in force stays in force. running is what the status says.
func (n *Notifier) Reload(ctx context.Context, running string, read func() (changed []string, err error), log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	select {
	case s := <-early:
		select {
		case hup <- s:
		default: // another one came meanwhile
		}
	default:
	}
	n.Ready(running)
	for {
		select {
		case <-ctx.Done():
			n.Stopping()
			return
		case <-hup:
		}
		n.Reloading()
		switch changed, err := read(); {
		case err != nil:
			log.Error("the configuration is refused; what was in force stays so", "error", err)
			n.Ready(running + "; the configuration that was read last was refused: " + err.Error())
		default:
			log.Info("the configuration was read again", "changed", changed)
			n.Ready(running)
		}
	}
}
