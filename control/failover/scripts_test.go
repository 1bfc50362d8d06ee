package failover

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"golang.org/x/sys/unix"
)

// killedIn names the folder in which this test binary is a command that is to be killed.
const killedIn = "HOLDFAST_TEST_KILLED_IN"

// TestScriptOfKilled: a script dies with its command, at once; what it started is ended before the job is carried on, so that none runs twice.
func TestScriptOfKilled(t *testing.T) {
	p := testPlan(recovery.Proof)
	p.Machines = p.Machines[1:]
	p.Machines[0].Before.Command = []string{"/bin/sh", "-c", `if [ -e first ]; then
	grep -q '^State:.[RSD]' /proc/$(cat first)/status && echo twice > twice
	exit 0
fi
sleep 300 &
echo $! > first
echo $$ $! > ../began
wait`}
	if folder := os.Getenv(killedIn); folder != "" {
		j := begin(t, filepath.Join(folder, "jobs"), p)
		t.Fatal("not killed: ", newRunner(t, &site{}, newHost(t)).Run(t.Context(), j))
	}
	folder := inMemory(t)
	jobs := filepath.Join(folder, "jobs")
	if err := os.Mkdir(jobs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(jobs, "began"), 0o600); err != nil {
		t.Fatal(err)
	}
	began, err := os.OpenFile(filepath.Join(jobs, "began"), os.O_RDWR, 0) // for writing too: no end before the script writes
	if err != nil {
		t.Fatal(err)
	}
	defer began.Close()
	command := exec.Command(os.Args[0], "-test.run=^TestScriptOfKilled$")
	command.Env = append(os.Environ(), killedIn+"="+folder, "TMPDIR="+folder)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var leader, child int
	if err = began.SetReadDeadline(time.Now().Add(time.Minute)); err == nil {
		_, err = fmt.Fscan(began, &leader, &child)
	}
	fd := -1
	if err == nil {
		fd, err = unix.PidfdOpen(leader, 0)
	}
	kerr := command.Process.Kill()
	werr := command.Wait()
	if err != nil || kerr != nil {
		t.Fatal(err, kerr, werr)
	}
	defer unix.Close(fd)
	defer unix.Kill(child, unix.SIGKILL)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000); n != 1 || err != nil {
		t.Errorf("the script lives on without its command: %d, %v", n, err)
	}

	j, err := Open(jobs, "r1")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	s, h := &site{}, newHost(t)
	h.machines["web"] = &testMachine{state: hypervisor.Off}
	if err := newRunner(t, s, h).Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	wantState(t, j, s, h, recovery.Over, recovery.Passed)
	if _, err := os.Stat(filepath.Join(j.Dir, "twice")); err == nil {
		t.Error("what the first script started ran beside the second")
	}
	if _, err := os.Stat(filepath.Join(j.Dir, scriptName)); err == nil {
		t.Error("a script is written down still")
	}
}

// TestScriptOfOthers: a file that does not read stops the job before a script runs twice; a process that has only the number is let be.
func TestScriptOfOthers(t *testing.T) {
	j := begin(t, inMemory(t), testPlan(recovery.Test))
	defer j.Close()
	path := filepath.Join(j.Dir, scriptName)
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("/bin/sh", "-c", "read x; exit 7")
	other.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	f := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := j.endScript(t.Context())
		if _, serr := os.Stat(path); want == "" && (err != nil || serr == nil) || want != "" && (err == nil || !strings.Contains(err.Error(), want) || serr != nil) {
			t.Errorf("%s: %v (%v), want %q", text, err, serr, want)
		}
	}
	f("", "remove that file")
	f(`{"pid": 1}`, "no process 1")
	f(fmt.Sprintf(`{"boot": %q}`, boot), "") // it was never started
	stat, err := statOf(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	f(fmt.Sprintf(`{"pid": %d, "start": %d, "boot": "another"}`, other.Process.Pid, stat.start), "")
	f(fmt.Sprintf(`{"pid": %d, "start": %d, "boot": %q}`, other.Process.Pid, stat.start-1, boot), "")
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err == nil || err.Error() != "exit status 7" {
		t.Errorf("another's process: %v", err)
	}
}

// TestScriptNotWrittenDown: a command that was killed between the start of a script and the note of it leaves no process number. What it
// started is told by the job's mark, and no other job's is touched.
func TestScriptNotWrittenDown(t *testing.T) {
	folder := inMemory(t)
	j := begin(t, folder, testPlan(recovery.Proof))
	defer j.Close()
	mark, err := j.scriptMark()
	if err != nil {
		t.Fatal(err)
	}
	script := func(mark string) *exec.Cmd {
		cmd := exec.Command("/bin/sleep", "300")
		cmd.Env = []string{mark}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	ours, others := script(mark), script(mark+"2")
	defer func() { others.Process.Kill(); others.Wait() }()
	ended := make(chan error, 1)
	go func() { ended <- ours.Wait() }()
	if err := j.scriptRuns(0); err != nil {
		t.Fatal(err)
	}
	if err := j.endScript(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || ours.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the script ended by itself: %v", err)
	}
	if s, err := statOf(others.Process.Pid); err != nil || s.state == 'Z' {
		t.Errorf("another job's script was ended too: %c, %v", s.state, err)
	}
	if _, err := os.Stat(filepath.Join(j.Dir, scriptName)); !os.IsNotExist(err) {
		t.Errorf("the note of the script is still there: %v", err)
	}
}
