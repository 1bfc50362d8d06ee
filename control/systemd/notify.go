// Package systemd tells the service manager how a daemon is: that it is ready, reads its
// configuration again, ends, and that its loops turn.
//
// The words are those of sd_notify(3), one datagram each to the unix socket that NOTIFY_SOCKET names.
// Without that variable everything here does nothing: a daemon that is started by hand needs no manager.
package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Notifier speaks to the manager. The zero value, and nil, speak to nobody. Methods may be called concurrently.
type Notifier struct {
	socket   *net.UnixAddr
	watchdog time.Duration // the longest silence; 0: nobody watches
	log      *slog.Logger
}

// New is the notifier that the environment asks for, as getenv gives it; pid is this process. What cannot be told is logged, and
// changes nothing: the manager draws its own conclusions.
func New(getenv func(string) string, pid int, log *slog.Logger) (*Notifier, error) {
	n := &Notifier{log: log}
	switch path := getenv("NOTIFY_SOCKET"); {
	case path == "":
		return n, nil
	case path[0] == '@': // abstract; package net takes it as it stands
		n.socket = &net.UnixAddr{Name: path, Net: "unixgram"}
	case path[0] == '/':
		n.socket = &net.UnixAddr{Name: path, Net: "unixgram"}
	default:
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: want an absolute path, or an abstract name", path)
	}
	if of := getenv("WATCHDOG_PID"); of != "" && of != strconv.Itoa(pid) {
		return n, nil // it watches another process
	}
	if text := getenv("WATCHDOG_USEC"); text != "" {
		us, err := strconv.ParseInt(text, 10, 64)
		if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
			return nil, fmt.Errorf("WATCHDOG_USEC=%s: want microseconds, up to a day", text)
		}
		n.watchdog = time.Duration(us) * time.Microsecond
	}
	return n, nil
}

// Ready says that the daemon serves, and does so with the configuration that it was last asked to read.
func (n *Notifier) Ready(status string) { n.tell("READY=1", "STATUS="+oneLine(status)) }

// Reloading says that the configuration is read again; Ready follows.
func (n *Notifier) Reloading() {
	n.tell("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(monotonic().Microseconds(), 10))
}

// Stopping says that the daemon ends.
func (n *Notifier) Stopping() { n.tell("STOPPING=1") }

// Watch tells the manager that the daemon is well, four times in the span in which it wants to hear, for as long as alive
// says so, until ctx ends. alive returns why the daemon does not get on, or nil; while it does not return, or says why,
// the manager hears nothing, and in the end kills the process. Without a manager that watches it returns at once.
func (n *Notifier) Watch(ctx context.Context, alive func(context.Context) error) {
	if n == nil || n.watchdog == 0 {
		return
	}
	tick := time.NewTicker(n.watchdog / 4)
	defer tick.Stop()
	for {
		if err := alive(ctx); err == nil {
			n.tell("WATCHDOG=1")
		} else if ctx.Err() == nil {
			n.log.Error("this process does not get on, and the service manager is not told that it is well", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tell sends the lines as one datagram.
func (n *Notifier) tell(lines ...string) {
	if n == nil || n.socket == nil {
		return
	}
	c, err := net.DialUnix("unixgram", nil, n.socket)
	if err == nil {
		_, err = c.Write([]byte(strings.Join(lines, "\n")))
		c.Close()
	}
	if err != nil {
		n.log.Warn("the service manager is not told", "what", lines[0], "error", err)
	}
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// monotonic is the clock that the manager compares a reload with; Go does not show its own.
func monotonic() time.Duration {
	const clockMonotonic = 1
	var t syscall.Timespec
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0) // with a clock that exists it cannot fail
	return time.Duration(t.Nano())
}

// FromEnvironment is New for this process.
func FromEnvironment(log *slog.Logger) (*Notifier, error) { return New(os.Getenv, os.Getpid(), log) }
