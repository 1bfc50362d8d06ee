package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// visitor is a connection of a process.
type visitor struct {
	pid  int
	left bool
}

func (v *visitor) Process() int { return v.pid }
func (v *visitor) Left() bool   { return v.left }
func (*visitor) Gone() bool     { return false }
func (*visitor) Drop()          {}

// TestUsers: who was connected when the serving ended is missing until he comes back, ends, or the machine is started anew; who left before is not.
func TestUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v1")
	log, me := slog.New(slog.DiscardHandler), os.Getpid()
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	here := [16]byte{1}
	missing := func(when string, u *users, want ...int) {
		t.Helper()
		slices.Sort(want)
		if got := u.missing(); !slices.Equal(got, want) {
			t.Errorf("%s: %v are missing, want %v", when, got, want)
		}
	}
	u := openUsers(path, here, log)
	missing("at first", u)
	first, second := u.came(&visitor{pid: me}, "data"), u.came(&visitor{pid: me}, "data")
	first()
	gone := u.came(&visitor{pid: other.Process.Pid}, "data")
	u.came(&visitor{}, "data")()
	parted := exec.Command("sleep", "1000")
	if err := parted.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { parted.Process.Kill(); parted.Wait() }()
	last := u.came(&visitor{pid: parted.Process.Pid, left: true}, "data")
	u.end()
	second()
	gone()
	last() // as the end came
	u = openUsers(path, here, log)
	missing("after an end", u, me, other.Process.Pid)
	missing("after a boot", openUsers(path, [16]byte{2}, log))
	u.came(&visitor{pid: me}, "data")()
	missing("when one has come and left", u, other.Process.Pid)
	u.came(&visitor{pid: me}, "logs")
	u.came(&visitor{pid: me}, "data")
	u = openUsers(path, here, log)
	u.came(&visitor{pid: me}, "logs")()
	missing("when one of a process's disks has come and left", u, me, other.Process.Pid)
	u.came(&visitor{pid: me}, "data")()
	missing("when the other has, too", u, other.Process.Pid)
	u = openUsers(path, here, log) // killed
	missing("after a kill", u, other.Process.Pid)
	other.Process.Kill()
	other.Wait()
	missing("when the other has ended", u)

	u.away[user{me, 1, "data"}] = true
	missing("when his number was given again", u)

	var said bytes.Buffer
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	u = openUsers(path, here, slog.New(slog.NewTextHandler(&said, nil)))
	missing("when it does not read", u)
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	u.came(&visitor{pid: me}, "data")()
	for _, want := range []string{"cannot be told", "not written down"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is not said: %s", want, said.String())
		}
	}
}

// TestSilentQEMUIsWaitedFor has a QEMU of nobody's job use the view of a failover over NBD, and say nothing over a restart of the target: the view is not let go of until it
// has come back and left, however late that is.
func TestSilentQEMUIsWaitedFor(t *testing.T) {
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("qemu-storage-daemon is not there; install it: apt-get install qemu-system-x86")
	}
	t.Parallel()
	w, get := committedWorld(t, nil)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	u, err := nbd.ParseURI(get().View.Volumes[0].Nbd)
	must(err)
	node, err := json.Marshal(map[string]any{"driver": "nbd", "node-name": "disk0", "export": u.Export, "reconnect-delay": 3600,
		"server": map[string]any{"type": "unix", "path": u.Address}})
	must(err)
	dir, err := os.MkdirTemp("", "hf")
	must(err)
	defer os.RemoveAll(dir)
	front := filepath.Join(dir, "s")
	qemu := exec.Command("qemu-storage-daemon", "--blockdev", string(node), "--nbd-server", "addr.type=unix,addr.path="+front,
		"--export", "type=nbd,id=e,node-name=disk0,name=d")
	qemu.Stderr = t.Output()
	must(qemu.Start())
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()
	defer func() { qemu.Process.Kill(); <-ended }()
	w.await("QEMU is connected", func() bool { c, err := net.Dial("unix", front); return err == nil && c.Close() == nil })

	recovery := Handlers(Identity{}, nil, w.tg).Recovery
	letGo := func() error {
		_, err := recovery.LetGo(context.Background(), &holdfastv1.RecoveryServiceLetGoRequest{})
		return err
	}
	refused := func(when, why string) {
		t.Helper()
		if err := letGo(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable || !strings.Contains(err.Error(), why) {
			t.Fatalf("%s: %v", when, err) // QEMU would wait for the view, and this for QEMU
		}
	}
	again := func() {
		t.Helper()
		w.stopTarget()
		w.startTarget()
		recovery = Handlers(Identity{}, nil, w.tg).Recovery
		get = func() *holdfastv1.Failover {
			res, err := recovery.Get(t.Context(), &holdfastv1.RecoveryServiceGetRequest{})
			must(err)
			return res.Failover
		}
		w.await("the disk holds all", func() bool { return get().OnDisksAlone && get().View.GetVolumes() != nil })
		vs := w.tg.views
		vs.mu.Lock()
		defer vs.mu.Unlock()
		for _, v := range vs.mu.served {
			now := v.began.Add(returnWait)
			vs.mu.now = func() time.Time { return now }
		}
	}
	again()
	silent := strconv.Itoa(qemu.Process.Pid) + " (qemu-storage-da"
	refused("while it is silent", silent)
	c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: front, Export: "d"}.String())
	must(err)
	_, err = c.ReadAt(make([]byte, 4096), 0)
	must(errors.Join(err, c.Close()))
	refused("when it has come back", "over NBD")
	again()
	refused("while it is silent again", silent)
	must(qemu.Process.Kill())
	ended <- <-ended
	w.await("it has ended", func() bool { return letGo() == nil })
	if left, err := os.ReadDir(w.tg.views.usersDir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
