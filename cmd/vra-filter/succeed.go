package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/capture"
)

// How long we wait for another filter that serves our disks to end, how often we
// look, and how long opening may take before the log tells of it: a predecessor that
// was killed may have writes in flight.
const (
	liveWait  = 10 * time.Second
	liveEvery = 100 * time.Millisecond
	quietWait = time.Second
)

// openFilter opens the filter once nobody else serves its disks. The log says what it
// waits for; it gives up after most, or when ctx ends.
func openFilter(ctx context.Context, cfg *config.Filter, most time.Duration, log *slog.Logger) (*capture.Filter, error) {
	if err := waitForLive(ctx, cfg, most, log); err != nil {
		return nil, err
	}
	type opened struct {
		filter *capture.Filter
		err    error
	}
	done := make(chan opened, 1)
	go func() {
		f, err := capture.OpenFilter(filterConfig(cfg, log))
		done <- opened{f, err}
	}()
	quiet := time.NewTimer(quietWait)
	defer quiet.Stop()
	for {
		select {
		case o := <-done:
			if errors.Is(o.err, capture.ErrInUse) {
				o.err = fmt.Errorf("another process holds the disks of this filter: end it, or give this one disks and a pool_socket of its own: %w", o.err)
			}
			return o.filter, o.err
		case <-quiet.C:
			log.Info("waiting for the predecessor's last writes, or for the disks", "run_dir", cfg.RunDir)
		case <-ctx.Done():
			// Opening cannot be given up; the process ends now, or Close follows it.
			go func() {
				if o := <-done; o.err == nil {
					o.filter.Close()
				}
			}()
			return nil, ctx.Err()
		}
	}
}

// waitForLive waits while a process answers on one of our sockets.
func waitForLive(ctx context.Context, cfg *config.Filter, most time.Duration, log *slog.Logger) error {
	deadline := time.Now().Add(most)
	look := time.NewTicker(liveEvery)
	defer look.Stop()
	for said := false; ; {
		pid, volume := servedBy(cfg)
		if pid == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d serves %s on %s: end it first, or give this filter disks and sockets of its own", pid, volume.Name, volume.NBD)
		}
		if !said {
			said = true
			log.Info("waiting for another filter to end", "process", pid, "volume", volume.Name, "socket", volume.NBD, "at_most", most)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// servedBy says which process answers on the socket of one of our volumes; 0 for none.
func servedBy(cfg *config.Filter) (pid int, v config.FilterVolume) {
	for _, v := range cfg.Volumes {
		c, err := net.Dial("unix", v.NBD)
		if err != nil {
			continue
		}
		defer c.Close()
		pid = -1 // somebody
		if raw, err := c.(*net.UnixConn).SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
					pid = int(cred.Pid)
				}
			})
		}
		return pid, v
	}
	return 0, v
}
