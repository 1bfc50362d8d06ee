package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// scriptName is a file in a job's folder, there while a script of it runs.
const scriptName = "script"

// running is a script that runs: the process that leads its group.
type running struct {
	PID   int    `json:"pid"`   // 0: it is about to be started, and may have been since
	Start uint64 `json:"start"` // as in its /proc/PID/stat, ticks since the boot
	Boot  string `json:"boot"`  // which boot of the host
}

// maxOutput is how much of what a script says is kept.
const maxOutput = 16 << 10

// killedEvery is how often is looked whether those that were killed are gone.
const killedEvery = 10 * time.Millisecond

// killLimit is how long those that were killed may take to end.
const killLimit = 30 * time.Second

// script runs a program, and what it started, for as long as the step may take. When this process is killed, so is the
// program; what that started is ended by whoever carries the job on: see endScript.
func (c *carrier) script(ctx context.Context, s recovery.Step, argv []string) (found, error) {
	p := c.job.Plan
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // it is the death of the thread that started it that kills it
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for output that someone else keeps open
	cmd.Dir = c.job.Dir
	mark, err := c.job.scriptMark()
	if err != nil {
		return found{}, err
	}
	cmd.Env = append(os.Environ(), mark, "HOLDFAST_JOB="+p.ID, "HOLDFAST_KIND="+string(p.Kind), "HOLDFAST_GROUP="+p.Group,
		"HOLDFAST_CHECKPOINT="+c.job.checkpoint(), "HOLDFAST_MACHINE="+s.Machine)
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	if err = c.job.scriptRuns(0); err == nil {
		if err = cmd.Start(); err == nil {
			if err = c.job.scriptRuns(cmd.Process.Pid); err != nil {
				cmd.Cancel()
			}
			err = errors.Join(err, cmd.Wait())
		}
		err = errors.Join(err, os.Remove(filepath.Join(c.job.Dir, scriptName)))
	}
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w, and %s was killed", ctx.Err(), argv[0])
	} else if err != nil {
		err = fmt.Errorf("%s: %w", argv[0], err)
	}
	return found{text: out.String()}, err
}

// scriptMark stands in the environment of the job's scripts, and of no other's.
func (j *Job) scriptMark() (string, error) {
	dir, err := filepath.Abs(j.Dir)
	return "HOLDFAST_JOB_DIR=" + dir, err
}

// scriptRuns writes down which script runs; 0: one is about to.
func (j *Job) scriptRuns(pid int) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	var stat procStat
	if pid != 0 {
		if stat, err = statOf(pid); err != nil {
			return err
		}
	}
	text, err := json.Marshal(running{pid, stat.start, boot})
	if err != nil {
		return err
	}
	return kvm.WriteFile(filepath.Join(j.Dir, scriptName), text)
}

// endScript ends what is left of a script whose command was killed, and returns once none of it runs any more.
func (j *Job) endScript(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	path := filepath.Join(j.Dir, scriptName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || invariant.Planted("failover/scripts-live-on") {
		return nil
	}
	var was running
	if err == nil {
		if err = json.Unmarshal(text, &was); err == nil && (was.PID < 0 || was.PID == 1) {
			err = fmt.Errorf("no process %d", was.PID)
		}
	}
	if err != nil {
		return fmt.Errorf("job %s: %s, the script that its killed command ran: %w; remove that file once no such script runs", j.Plan.ID, path, err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	mark, err := j.scriptMark()
	if err != nil {
		return err
	}
	for was.Boot == boot {
		members, err := was.members(mark)
		if err != nil {
			return err
		}
		if len(members) == 0 {
			break
		}
		for _, pid := range members {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("job %s: process %d of the script that its killed command ran: %w", j.Plan.ID, pid, err)
			}
		}
		if err := wait.For(ctx, killedEvery); err != nil {
			return fmt.Errorf("job %s: processes %d of the script that its killed command ran do not end: %w", j.Plan.ID, members, err)
		}
	}
	return os.Remove(path)
}

// members are the processes of the script's group that run. While one does, no other process gets the group's number; once none does,
// one may, and is told by when it began, and those that it started by the job's mark. Where the group is not known the mark tells alone.
func (r running) members(mark string) (pids []int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, cerr := strconv.Atoi(filepath.Base(dir))
		if cerr != nil {
			continue
		}
		s, serr := statOf(pid)
		if serr != nil || r.PID != 0 && s.group != r.PID || s.state == 'Z' || s.state == 'X' || s.start < r.Start || pid == os.Getpid() {
			continue // also one that has ended meanwhile
		}
		ours := pid == r.PID && s.start == r.Start
		if pid != r.PID {
			environ, eerr := os.ReadFile(filepath.Join(dir, "environ"))
			ours = eerr == nil && slices.Contains(strings.Split(string(environ), "\x00"), mark)
		}
		if ours {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// bootID names this boot of the host.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(text)), err
}

// procStat is what /proc/PID/stat says of a process.
type procStat struct {
	state byte
	group int
	start uint64 // ticks since the boot
}

// statOf reads it: the name stands in brackets and may hold anything, so fields are counted from the last closing one.
func statOf(pid int) (s procStat, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return s, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	s.state = fields[0][0]
	s.group, err = strconv.Atoi(string(fields[2]))
	if err == nil {
		s.start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	}
	return s, err
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-maxOutput):]
	return len(p), nil
}

func (t *tail) String() string {
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.text), []byte("?")))
}
