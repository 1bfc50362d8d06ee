package bars

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// Parts are the measurements, and parts of them, that run in processes of their own, so that
// CPU, memory and bytes written are counted apart. A part is the same program, started
// with -child and the part's name, and -args and its arguments as JSON; it prints
// what it measured as JSON.
type Parts map[string]func(ctx context.Context, args []byte) (any, error)

// Part makes a part of a function.
func Part[A, R any](f func(context.Context, A) (R, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, p []byte) (any, error) {
		var a A
		if err := json.Unmarshal(p, &a); err != nil {
			return nil, err
		}
		return f(ctx, a)
	}
}

// run is one of the parts, in this process.
func (p Parts) run(ctx context.Context, name, args string, out io.Writer) error {
	f := p[name]
	if f == nil {
		return fmt.Errorf("no part is called %q", name)
	}
	r, err := f(ctx, []byte(args))
	if err == nil {
		err = json.NewEncoder(out).Encode(r)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Command is a part, to be started by the caller. It ends with the run.
func (r *Run) Command(name string, args any) (*exec.Cmd, error) {
	p, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(r.Context, self, "-child", name, "-args", string(p))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// Alone runs a part that is a measurement by itself, and returns how many cores others
// used meanwhile.
func Alone[R any](r *Run, name string, args any) (result R, foreign float64, err error) {
	cmd, err := r.Command(name, args)
	if err != nil {
		return result, 0, err
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	began := Look()
	if err := cmd.Run(); err != nil {
		return result, 0, fmt.Errorf("%s: %w", name, err)
	}
	return result, began.Foreign(CPUOf(cmd)), json.Unmarshal(out.Bytes(), &result)
}
