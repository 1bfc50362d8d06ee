package datapath

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// users are the processes of this host that are connected to a view over NBD. QEMU comes back to a view whose server went away when it reads or
// writes next, and not before: so they are written down, beside the sockets, and the vra that serves the view next knows of those that may still use it, however
// long they are silent. Who left while he was served, or has ended, does not come back.
type users struct {
	path string
	boot [16]byte
	log  *slog.Logger

	mu    sync.Mutex
	here  map[user]int  // connections
	away  map[user]bool // were connected when the view was served last
	ended bool          // connections are ended from here
}

// user is a process of this boot that has a disk of the view. Each of its disks comes back by itself.
type user struct {
	PID    int    `json:"pid"`
	Began  uint64 `json:"began"` // clock ticks since the boot: a pid is given again
	Volume string `json:"volume"`
}

// usersFile is what is written down.
type usersFile struct {
	Boot  string `json:"boot"`
	Users []user `json:"users"`
}

// openUsers goes on with what is written down of this boot. What cannot be read keeps nobody from the view.
func openUsers(path string, boot [16]byte, log *slog.Logger) *users {
	u := &users{path: path, boot: boot, log: log, here: make(map[user]int), away: make(map[user]bool)}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return u
	}
	var have usersFile
	if err == nil {
		err = json.Unmarshal(text, &have)
	}
	if err == nil && have.Boot == hex.EncodeToString(boot[:]) {
		for _, p := range have.Users {
			u.away[p] = true
		}
	}
	if err != nil {
		log.Error("who used the view over NBD before cannot be told: they are not waited for", "error", err)
	}
	return u
}

// began is when a process began; false: there is none.
func began(pid int) (uint64, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // a name may hold anything
	const atState, atBegan = 0, 19
	if len(fields) <= atBegan || fields[atState] == "Z" {
		return 0, false
	}
	ticks, err := strconv.ParseUint(fields[atBegan], 10, 64)
	return ticks, err == nil
}

// came notes a connection of a process to a volume, until left. One that cannot be told is not noted.
func (u *users) came(c front.Connection, volume string) (left func()) {
	pid := c.Process()
	at, ok := began(pid)
	if !ok {
		u.log.Warn("who uses the view over NBD cannot be told: after a restart of this process he is waited for no longer than a moment", "volume", volume)
		return func() {}
	}
	p := user{pid, at, volume}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.here[p]++
	delete(u.away, p)
	u.keepLocked()
	return sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.ended && !c.Left() {
			return
		}
		if u.here[p]--; u.here[p] == 0 {
			delete(u.here, p)
		}
		u.keepLocked()
	})
}

// end says that connections are ended from here: who does not leave by himself from now on may come back.
func (u *users) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
}

// missing are the processes that were connected when the view was served last, are there, and have not come back.
func (u *users) missing() (pids []int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for p := range u.away {
		if at, ok := began(p.PID); ok && at == p.Began {
			pids = append(pids, p.PID)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// keepLocked writes down who is to be known of after this process.
func (u *users) keepLocked() {
	have := usersFile{Boot: hex.EncodeToString(u.boot[:]), Users: []user{}}
	for p := range u.here {
		have.Users = append(have.Users, p)
	}
	for p := range u.away {
		have.Users = append(have.Users, p)
	}
	text, err := json.Marshal(have)
	if err == nil {
		err = os.WriteFile(u.path+".new", text, 0o600)
	}
	if err == nil { // what a crash of the machine leaves of it is of another boot
		err = os.Rename(u.path+".new", u.path)
	}
	if err != nil {
		u.log.Error("who uses the view over NBD is not written down: after a restart of this process they are not waited for", "error", err)
	}
}

// usersPath is where it is written down who uses a view.
func (vs *views) usersPath(number uint64) string { return filepath.Join(vs.usersDir, viewID(number)) }

// forgetUsers removes what is written down of views that there are no more.
func (vs *views) forgetUsers(open func(number uint64) bool) error {
	all, err := os.ReadDir(vs.usersDir)
	for _, e := range all {
		number, bad := strconv.ParseUint(strings.TrimPrefix(strings.TrimSuffix(e.Name(), ".new"), "v"), 10, 64)
		if bad != nil || !open(number) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(vs.usersDir, e.Name())))
		}
	}
	return err
}

// usedDevice is a disk of a view over NBD.
type usedDevice struct {
	viewDevice
	users  *users
	volume string
}

var _ interface {
	front.Laned
	front.Watched
} = usedDevice{}

// Connected implements front.Watched.
func (d usedDevice) Connected(c front.Connection) (left func()) {
	if invariant.Planted("datapath/users-unnoted") {
		return func() {}
	}
	return d.users.came(c, d.volume)
}

// Refused implements front.Watched: it changes nothing about who is there.
func (usedDevice) Refused(error) {}

// describeProcesses names processes for people.
func describeProcesses(pids []int) string {
	var all []string
	for _, pid := range pids {
		name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		if err != nil {
			name = []byte("?")
		}
		all = append(all, fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(name))))
	}
	return strings.Join(all, ", ")
}
