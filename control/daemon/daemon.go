// Package daemon is what the mains of all daemons have in common: how they are started and end, the flags that
// each has, where they log to, and the unix sockets they listen on.
package daemon

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
)

// ErrUsage ends every error about the command line itself.
var ErrUsage = errors.New("try --help")

// Main runs a daemon until it ends by itself, or is told to by SIGINT or SIGTERM, and ends the process: with status 0, with 2
// after a wrong command line, or with 1. A SIGHUP that comes before the daemon can read its file again does not end it.
func Main(name string, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) {
	systemd.HoldReloads()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status(name, err, os.Stderr))
}

// status is what the process ends with; an error is told once, here, each of its lines with the daemon's name.
func status(name string, err error, stderr io.Writer) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(stderr, name+":", strings.ReplaceAll(err.Error(), "\n", "\n"+name+": "))
	if errors.Is(err, ErrUsage) {
		return 2
	}
	return 1
}

// Flags are those that every daemon has; one adds its own before it parses.
type Flags struct {
	*flag.FlagSet
	File           string // of the configuration; never empty once they are parsed
	logFile        string
	check, version bool
}

// NewFlags are the flags of the daemon of that name.
func NewFlags(name string) *Flags {
	f := &Flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard) // an error is told once, by Main
	f.StringVar(&f.File, "config", "", "the configuration, a YAML `file`")
	f.BoolVar(&f.check, "check-config", false, "check the configuration and the files it names, say what is wrong, and end")
	f.StringVar(&f.logFile, "log-file", "", "log to this `file` too, and to FILE.1 and so on when it is full")
	f.BoolVar(&f.version, "version", false, "print the version and end")
	return f
}

// Take parses args. Done: the version was all that was asked for, and is printed. flag.ErrHelp: the help was, and is.
func (f *Flags) Take(args []string, stdout, stderr io.Writer) (done bool, err error) {
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stderr, "Usage of %s:\n", f.Name())
		f.SetOutput(stderr)
		f.PrintDefaults()
		return false, err
	case err != nil:
		return false, Usage(err)
	case f.version:
		_, err := fmt.Fprintln(stdout, f.Name(), version.Read())
		return true, err
	case f.File == "" || f.NArg() > 0:
		return false, Usage(errors.New("--config is needed and nothing else"))
	}
	return false, nil
}

// Usage is an error about the command line itself.
func Usage(err error) error { return fmt.Errorf("%w: %w", err, ErrUsage) }

// Checked takes what is wrong with the configuration, nil for nothing, before anything is made: what cannot run
// leaves nothing behind. Done: the check was all that was asked for, and its outcome is printed.
func (f *Flags) Checked(wrong error, stdout io.Writer) (done bool, err error) {
	if wrong != nil {
		return false, config.InFile(f.File, wrong)
	}
	if f.check {
		_, err := fmt.Fprintln(stdout, "config ok")
		return true, err
	}
	return false, nil
}

// Log writes to stderr, and to the file that the flags name, from the level on that it returns, which may be changed at any time. The
// caller calls end when nothing more is logged.
func (f *Flags) Log(stderr io.Writer, from slog.Level) (log *slog.Logger, level *slog.LevelVar, end func()) {
	level, end = new(slog.LevelVar), func() {}
	level.Set(from)
	if f.logFile != "" {
		b := &both{stderr: stderr}
		b.file = openLogFile(f.logFile, logFileBytes, func(s string) { b.toStderr([]byte(f.Name() + ": " + s + "\n")) })
		stderr, end = b, b.file.close
	}
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})), level, end
}

// both gives what is logged to stderr and to a file: neither keeps it from the other.
type both struct {
	mu     sync.Mutex
	stderr io.Writer
	file   *logFile
}

func (b *both) Write(p []byte) (int, error) {
	b.file.Write(p)
	return b.toStderr(p)
}

func (b *both) toStderr(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stderr.Write(p)
}

// Listen opens a unix socket for its owner alone, and for the members of the group of that number unless it is -1. One that a
// dead process left is taken over; one that somebody answers on is not, nor is a file of another kind.
func Listen(path string, group int) (*net.UnixListener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another process answers on it; stop that, or choose another socket", path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if group >= 0 {
		mode = 0o660
		if err := os.Chown(path, -1, group); err != nil {
			return nil, errors.Join(fmt.Errorf("socket %s for the group %d: %w: run as a member of it", path, group, err), l.Close())
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
