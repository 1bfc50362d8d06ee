package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// together runs a target and, once that listens, a source, and returns what the source measured,
// the CPU seconds of both, and how many cores others used meanwhile. A target prints a line
// with its address when it listens, and ends when its input does.
func together[R any](target *exec.Cmd, source func(address string) (*exec.Cmd, error)) (r R, cpu, foreign float64, err error) {
	in, err := target.StdinPipe()
	if err != nil {
		return r, 0, 0, err
	}
	said, err := target.StdoutPipe()
	if err != nil {
		return r, 0, 0, err
	}
	began := bars.Look()
	if err := target.Start(); err != nil {
		return r, 0, 0, err
	}
	out, err := beside(said, source)
	in.Close()
	io.Copy(io.Discard, said)
	if failed := target.Wait(); failed != nil {
		err = errors.Join(err, fmt.Errorf("target: %w", failed))
	}
	if err != nil {
		return r, 0, 0, err
	}
	cpu = bars.CPUOf(out.cmd) + bars.CPUOf(target)
	return r, cpu, began.Foreign(cpu), json.Unmarshal(out.printed, &r)
}

// ended is a source that has ended, and what it printed.
type ended struct {
	cmd     *exec.Cmd
	printed []byte
}

// beside runs a source with the address that the target says.
func beside(said io.Reader, source func(address string) (*exec.Cmd, error)) (e ended, err error) {
	var address string
	if _, err := fmt.Fscanln(said, &address); err != nil {
		return e, fmt.Errorf("the target does not listen: %w", err)
	}
	if e.cmd, err = source(address); err != nil {
		return e, err
	}
	if e.printed, err = e.cmd.Output(); err != nil {
		return e, fmt.Errorf("source: %w", err)
	}
	return e, nil
}

// untilInputEnds is a context for a target; stop ends it too.
func untilInputEnds(ctx context.Context) (until context.Context, stop func()) {
	ctx, stop = context.WithCancel(ctx)
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	return ctx, stop
}

// linked runs two parts, a target and a source, each in a network namespace of its own, which
// a link of the rate joins. Whatever takes longer than the limit is ended.
func linked[R any](b *bench, rate shape.Rate, target, source string, args any, limit time.Duration) (r R, foreign float64, err error) {
	near, far, down, err := network(b.Context, rate)
	if err != nil {
		return r, 0, err
	}
	defer down()
	ctx, stop := context.WithTimeout(b.Context, limit)
	defer stop()
	inside := func(namespace, part string) (*exec.Cmd, error) {
		c, err := b.Command(part, args)
		if err != nil {
			return nil, err
		}
		in := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", namespace}, c.Args...)...)
		in.Stderr = c.Stderr
		return in, nil
	}
	peer, err := inside(far, target)
	if err != nil {
		return r, 0, err
	}
	r, _, foreign, err = together[R](peer, func(string) (*exec.Cmd, error) { return inside(near, source) })
	return r, foreign, err
}
