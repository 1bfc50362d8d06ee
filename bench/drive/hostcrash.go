package drive

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// HostCrash is what a crash of the source's host came to, in bytes.
type HostCrash struct {
	Changed  int64 // written, and not at the second site when it crashed
	Compared int64 // of disk
	Sent     int64 // by the link, from source to target
}

// Allowed is what the bar lets it send.
func (c HostCrash) Allowed() int64 { return 2*c.Changed + c.Compared/4096*16 }

// BootFile makes a file that names a boot, and returns what has a lab's daemons believe it.
func BootFile(name string) (env string, err error) {
	return "HOLDFAST_BOOT_ID_FILE=" + name, newBoot(name)
}

func newBoot(name string) error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(hex.EncodeToString(id[:])), 0o600)
}

// CrashHost writes that many blocks of 4 KiB to the first 64 MiB of the first volume while the group is paused, and has the
// source's host crash, as far as processes can tell: filter and VRA are killed, and those that are started
// again find another boot, whose name stands in boot, and nothing in the run directory that they believe. It returns once
// the group is protected. The group must be protected, and its volumes logged.
func (l *Lab) CrashHost(ctx context.Context, boot string, blocks int) (c HostCrash, err error) {
	f, err := config.LoadFilter(filepath.Join(l.Dir, "etc", "vra-filter.yaml"))
	if err != nil {
		return c, err
	}
	if err := l.EmptyLog(ctx); err != nil {
		return c, err
	}
	if _, err := l.Run(ctx, "group", "pause", l.Group); err != nil {
		return c, err
	}
	if err := l.writeBlocks(ctx, blocks); err != nil {
		return c, err
	}
	c.Changed = int64(blocks) * 4096
	ledgers, _ := filepath.Glob(filepath.Join(f.RunDir, "ledger-*"))
	err = newBoot(boot)
	for _, name := range ledgers {
		err = errors.Join(err, os.Remove(name))
	}
	logs := filepath.Join(l.Dir, "logs", "vra-source.log")
	before, readErr := os.ReadFile(logs)
	if err = errors.Join(err, readErr, l.Kill(ctx, "vra-filter"), l.Kill(ctx, "vra-source")); err != nil {
		return c, err
	}
	m, err := l.Machinery(ctx)
	if err != nil {
		return c, err
	}
	if err := l.Await(ctx, time.Minute, "back", func(s Status) bool { return s.State == "paused" }); err != nil {
		return c, err
	}
	if _, err := l.Run(ctx, "group", "resume", l.Group); err != nil {
		return c, err
	}
	if err := l.Protected(ctx); err != nil {
		return c, err
	}
	c.Sent = -m.Link.Sent
	if m, err = l.Machinery(ctx); err != nil {
		return c, err
	}
	c.Sent += m.Link.Sent
	said, err := os.ReadFile(logs)
	for _, found := range compared.FindAllSubmatch(said[min(len(before), len(said)):], -1) {
		n, _ := strconv.ParseInt(string(found[1]), 10, 64)
		c.Compared += n
	}
	return c, err
}

var compared = regexp.MustCompile(`compared with what the target holds".* bytes=(\d+)`)

// EmptyLog has the filter start again after a clean close, by which everything leaves its activity logs, and waits until the
// source has kept that they are believed.
func (l *Lab) EmptyLog(ctx context.Context) error {
	pid, err := l.PID(ctx, "vra-filter")
	if err == nil {
		err = l.await(ctx, "logged", func() bool {
			names, _ := filepath.Glob(filepath.Join(l.Dir, "*", "kept-*"))
			deeper, _ := filepath.Glob(filepath.Join(l.Dir, "*", "*", "kept-*"))
			for _, name := range append(names, deeper...) {
				text, _ := os.ReadFile(name)
				return bytes.Contains(text, []byte(`"logged":[`)) && !bytes.Contains(text, []byte(`"logged":[]`))
			}
			return false
		})
	}
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGTERM)
	}
	if err == nil {
		err = l.await(ctx, "another filter", func() bool { p, err := l.PID(ctx, "vra-filter"); return err == nil && p != pid })
	}
	if err != nil {
		return err
	}
	if _, err := l.Checkpoint(ctx, "logged"); err != nil {
		return err
	}
	return l.Protected(ctx)
}

func (l *Lab) await(ctx context.Context, what string, ok func() bool) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			if now.After(end) {
				return fmt.Errorf("not in time: %s", what)
			}
		}
	}
	return nil
}

// writeBlocks writes blocks of noise at places of their own.
func (l *Lab) writeBlocks(ctx context.Context, blocks int) error {
	c, err := nbd.Dial(ctx, l.Volumes[0].NBD)
	if err != nil {
		return err
	}
	defer c.Close()
	p := make([]byte, 4096)
	for _, b := range mrand.Perm(64 << 20 / 4096)[:blocks] {
		_, _ = rand.Read(p)
		if _, err := c.WriteAt(p, int64(b)*4096); err != nil {
			return err
		}
	}
	return c.Flush()
}
