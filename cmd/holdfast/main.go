// Command holdfast is the user's command: it runs labs, and speaks to the VRAs of a
// context about groups, checkpoints and views.
//
// stdout carries only the result, as a table or as JSON; progress and errors go to
// stderr. Exit status: 0; 2 for what the arguments alone show to be wrong; 130 after
// Ctrl-C; 1 for all else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/bench/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the program at once: what it was cleaning up then stays.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}

// Exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// run carries out one command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env func(string) string) int {
	root := newRoot(&app{stdout: stdout, stderr: stderr, env: env})
	root.SetArgs(append([]string{}, args...)) // nil would mean the process's own
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	switch {
	case isUsage(err):
		code = exitUsage
		err = fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
	case ctx.Err() != nil:
		code = exitInterrupted
		if errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx)) {
			err = errors.New("interrupted")
		}
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(stderr, "holdfast:", printable(line))
	}
	return code
}

// usageError is what the arguments alone show to be wrong.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func isUsage(err error) bool {
	_, ok := errors.AsType[usageError](err)
	return ok || errors.Is(err, scenario.ErrUsage)
}
