package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Freeze are the commands that bring a group's guests to rest before a cut, and let them go on
// after it. Each is a program and its arguments; no shell is between.
type Freeze struct{ Before, After []string }

// freezer runs a group's freezes, one at a time.
type freezer struct {
	commands Freeze
	note     string        // a file that is there while the guests may be at rest
	busy     chan struct{} // capacity 1: taken by who runs one
	limit    time.Duration
}

func newFreezer(dataDir string, g GroupConfig) freezer {
	return freezer{g.Freeze, filepath.Join(dataDir, "frozen-"+g.ID.String()), make(chan struct{}, 1), freezeLimit}
}

// createFrozen makes a checkpoint with the guests at rest at its ticket. Where they cannot be
// brought to rest, or no cut be taken while they are, it is made all the same, says that the
// freeze failed, and why is the reason. The after-command always runs, and before createFrozen
// waits for the target; a process that was killed in between runs it when it is started again.
func (f *flow) createFrozen(ctx context.Context, w *wish) (why error, err error) {
	select {
	case f.freezer.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, f.notListed(w)
	}
	began := time.Now()
	if why = f.freezer.begin(w.tag); why == nil {
		why = f.hook(ctx, "before", f.freezer.commands.Before, w.tag)
	}
	w.freeze = record.Frozen
	if why != nil {
		w.freeze = record.FreezeFailed
	}
	if ctx.Err() == nil {
		f.ask(w)
	}
	if why == nil {
		why = f.awaitTicket(ctx, w, f.freezer.limit-time.Since(began))
	}
	thawed := f.thaw(ctx, w.tag)
	<-f.freezer.busy
	if thawed != nil {
		f.log.Error("the guests may be at rest still: the after-command failed", "error", thawed)
	}
	return why, f.awaitListed(ctx, w)
}

// begin says on disk that the guests may be at rest.
func (z *freezer) begin(tag string) error { return writeDurably(z.note, []byte(tag+"\n")) }

// awaitTicket waits until the wish's cut has its ticket. One that has none in time is not of
// the freeze any more.
func (f *flow) awaitTicket(ctx context.Context, w *wish, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-w.taken:
		return nil
	case <-ctx.Done():
	case <-t.C:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.hasTicket {
		return nil
	}
	f.stepLocked(group.CutThawed{Ask: w.id})
	st := f.mu.machine.Status()
	return fmt.Errorf("no checkpoint could be cut within %s: the group is %s: %s", f.freezer.limit, st.State, st.Reason)
}

// thaw lets the guests go on, whoever waits or does not.
func (f *flow) thaw(ctx context.Context, tag string) error {
	err := f.hook(context.WithoutCancel(ctx), "after", f.freezer.commands.After, tag)
	if err := os.Remove(f.freezer.note); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.log.Warn("that the guests go on is not noted: the after-command runs again at the next start", "error", err)
	}
	return err
}

// thawLeft lets guests go on that an earlier process brought to rest, and none that this one did.
func (f *flow) thawLeft(ctx context.Context) {
	select {
	case f.freezer.busy <- struct{}{}:
		defer func() { <-f.freezer.busy }()
	case <-ctx.Done():
		return
	}
	tag, err := os.ReadFile(f.freezer.note)
	if errors.Is(err, os.ErrNotExist) || invariant.Planted("datapath/never-thawed") {
		return
	}
	f.log.Warn("the process ended while the guests may have been at rest: the after-command runs now")
	if err := errors.Join(err, f.thaw(ctx, strings.TrimSuffix(string(tag), "\n"))); err != nil {
		f.log.Error("the guests may be at rest still: the after-command failed", "error", err)
	}
}

// hook runs a command to its end, or to the limit; then it is killed, with all that it
// started in its process group. What it says is in the error.
func (f *flow) hook(ctx context.Context, which string, command []string, tag string) error {
	if len(command) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.freezer.limit)
	defer cancel()
	var said tail
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "HOLDFAST_GROUP="+f.cfg.Name, "HOLDFAST_TAG="+tag)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the %s-command did not end within %s", which, f.freezer.limit)
	}
	return fmt.Errorf("the %s-command: %w%s", which, err, said.text())
}

// tail keeps the end of what is written to it.
type tail struct{ bytes.Buffer }

const tailBytes = 256

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p)
	if n := t.Len(); n > tailBytes {
		t.Next(n - tailBytes)
	}
	return len(p), nil
}

// text is the last line, to follow an error.
func (t *tail) text() string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(t.String(), "?")), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return ": " + last
	}
	return ""
}

// sayable is what the target is told of a freeze: nothing, if it is of a release that refuses
// cuts that say something.
func (f *flow) sayable(z record.Freeze) record.Freeze {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.mu.freezes {
		return record.NotAsked
	}
	return z
}
