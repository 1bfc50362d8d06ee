//go:build e2e

package scenario_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// sidecar is a client of the sidecar of a role's site.
func (l *lab) sidecar(role string) *api.Client {
	l.t.Helper()
	c, err := config.LoadContext(filepath.Join(l.Dir, "remote.yaml"))
	l.must(err)
	v, _ := c.VRA(role)
	trust, err := pairing.LoadTrust(v.Sidecar.TLS.CA, v.Sidecar.TLS.Cert, v.Sidecar.TLS.Key)
	l.must(err)
	client := api.DialTLS(api.Addresses{Commands: v.Sidecar.Commands, Checkpoints: v.Sidecar.Checkpoints, Logs: v.Sidecar.Logs}, trust.Client(api.RoleSidecar))
	l.t.Cleanup(client.Close)
	return client
}

// watcher watches a group, and watches again when the sidecar goes away.
type watcher struct {
	mu    sync.Mutex
	state string // empty while nothing is known
	away  string
	again int
	news  chan struct{}
}

func (w *watcher) run(ctx context.Context, c *api.Client) {
	for ctx.Err() == nil {
		c.Watch.Watch(ctx, &holdfastv1.WatchServiceWatchRequest{}, func(m *holdfastv1.WatchServiceWatchResponse) error {
			w.set(func() {
				if w.away = m.Unreachable; w.away != "" {
					w.state = ""
				}
				for _, g := range m.Groups {
					w.state = g.State
				}
			})
			return nil
		})
		w.set(func() { w.state = ""; w.again++ })
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (w *watcher) set(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// await waits until the watcher knows what it should.
func (w *watcher) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.After(time.Minute); ; {
		w.mu.Lock()
		is := ok()
		w.mu.Unlock()
		if is {
			return
		}
		select {
		case <-w.news:
		case <-limit:
			t.Fatalf("the watcher never knows that %s: state %q, away %q", what, w.state, w.away)
		}
	}
}

// TestEndToEndSidecar kills sidecar and vra, in any order, while a client watches and others ask: replication goes on,
// the watcher knows again how things stand, and a key of a call holds over the death of the sidecar. Then
// it runs what README shows.
func TestEndToEndSidecar(t *testing.T) {
	const size = 64 << 20
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	l := up(t, "", nil, append(prefilled(t, 1, size, corpus, h, size/8), "--interval", "1s", "--link", "none")...)
	l.protected()
	c := l.sidecar(api.RoleSource)
	w := &watcher{news: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.run(ctx, c) })
	defer func() { stop(); wg.Wait() }()
	protected := func() {
		t.Helper()
		w.await(t, "the group is protected", func() bool { return w.state == api.StateProtected })
	}
	protected()

	key := api.NewKey()
	cut := func() (id string) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); ; {
			res, err := c.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Group: l.Group, Tag: "by the sidecar", IdempotencyKey: key})
			if err == nil {
				return res.Checkpoint.Id
			}
			if f := api.AsFailure(err); time.Now().After(limit) || f.Code != api.Unavailable && f.Code != api.Precondition {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
		}
	}
	first := cut()
	vra, err := l.PID(t.Context(), "vra-source")
	l.must(err)
	again := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.again }
	// kill ends processes at once, and waits until all is as it was: the watch ends with its sidecar, and with nothing else.
	kill := func(names ...string) {
		t.Helper()
		seen, before := again(), map[string]int{}
		for _, name := range names {
			before[name], err = l.PID(t.Context(), name)
			l.must(err)
		}
		for _, name := range names {
			l.kill(name)
		}
		for name, pid := range before {
			for limit := time.Now().Add(time.Minute); ; <-time.After(50 * time.Millisecond) {
				if now, err := l.PID(t.Context(), name); err == nil && now != pid {
					break
				} else if time.Now().After(limit) {
					t.Fatalf("%s is not started again: %v", name, err)
				}
			}
		}
		if slices.Contains(names, "sidecar-source") {
			w.await(t, "its sidecar went away", func() bool { return w.again > seen })
		} else if now := again(); now != seen {
			t.Errorf("the watch ended with %v", names)
		}
		l.protected()
		protected()
	}
	kill("sidecar-source")
	if now, err := l.PID(t.Context(), "vra-source"); err != nil || now != vra {
		t.Errorf("the vra is process %d now, %v", now, err)
	}
	if second := cut(); second != first {
		t.Errorf("one key made the checkpoints %s and %s", first, second)
	}
	kill("vra-source")
	kill("vra-source", "sidecar-source")
	kill("sidecar-source", "vra-source")
	kill("sidecar-target", "vra-filter")
	s := l.Stamper(1, load.ProfileWild, 4, corpus, h)
	runFor(t, s, func() bool { return s.Stats().Bytes >= 4<<20 })
	protected()
	l.protected()
	last := l.checkpoint("last")
	if _, err := l.Compare(t.Context(), last.ID, 1, h, corpus, true); err != nil {
		t.Error(err)
	}
	asReadmeShows(t, l)
}

// asReadmeShows runs the blocks of README that say that they run in a lab, with this lab's folder and programs.
func asReadmeShows(t *testing.T, l *lab) {
	readme, err := os.ReadFile("../../README.md")
	l.must(err)
	blocks := regexp.MustCompile(`(?m)^<!-- run in a lab -->\n\n((?:    .*\n)+)`).FindAllStringSubmatch(string(readme), -1)
	if len(blocks) < 2 {
		t.Fatalf("README has %d blocks to run", len(blocks))
	}
	pid, err := l.PID(t.Context(), "vra-source")
	l.must(err)
	vra, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	l.must(err)
	root, bin := t.TempDir(), filepath.Dir(vra)
	l.must(os.Symlink(bin, filepath.Join(root, "bin")))
	path := os.Getenv("PATH")
	var missing error // of grpcurl
	if _, err := exec.LookPath("grpcurl"); err != nil {
		tools := t.TempDir()
		cmd := exec.Command("go", "install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4")
		cmd.Env = append(os.Environ(), "GOBIN="+tools, "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
		if out, err := cmd.CombinedOutput(); err != nil {
			missing = fmt.Errorf("%w: %s", err, out)
		}
		path = tools + ":" + path
	}
	run := func(t *testing.T, block, without string, wants ...string) {
		t.Helper()
		script := []string{"set -e -o pipefail"}
		for line := range strings.Lines(block) {
			if line = strings.TrimSpace(line); without == "" || !regexp.MustCompile(`\b`+without+` `).MatchString(line) {
				script = append(script, strings.ReplaceAll(line, "/tmp/lab", l.Dir))
			}
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		cmd := exec.CommandContext(ctx, "bash", "-c", strings.Join(script, "\n"))
		cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v:\n%s\n%s", err, strings.Join(script, "\n"), out)
		}
		t.Logf("%.3000s", out)
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("it does not show %q", want)
			}
		}
	}
	for _, b := range blocks {
		if strings.Contains(b[1], "bin/holdfast status") {
			t.Run("README/holdfast", func(t *testing.T) { run(t, b[1], "", "protected", "by-the-sidecar") })
			continue
		}
		t.Run("README/curl", func(t *testing.T) {
			run(t, b[1], "grpcurl", `"site":"recovery"`, `"nextPageToken"`, "SERVING", "holdfast_sidecar_vra_up 1", "holdfast_journal_sync_seconds_count")
		})
		t.Run("README/grpcurl", func(t *testing.T) {
			if missing != nil {
				t.Skipf("grpcurl cannot be had: %v", missing)
			}
			run(t, b[1], "curl", "holdfast.v1.WatchService", "grpc.health.v1.Health", `"complete": true`, `"lines"`, "manifest.json", "logs/vra.log")
		})
	}
}

// TestEndToEndSidecarRefuses: who has no certificate of the site, or none at all, hears nothing.
func TestEndToEndSidecarRefuses(t *testing.T) {
	l := up(t, "", nil, "--size", "16MiB", "--interval", "1s", "--link", "none")
	c, err := config.LoadContext(filepath.Join(l.Dir, "remote.yaml"))
	l.must(err)
	source, _ := c.VRA(api.RoleSource)
	target, _ := c.VRA(api.RoleTarget)
	for what, files := range map[string]config.SidecarTLS{
		"another site's":   target.Sidecar.TLS,
		"the data plane's": {CA: source.Sidecar.TLS.CA, Cert: filepath.Join(filepath.Dir(source.Sidecar.TLS.CA), "cert.pem"), Key: filepath.Join(filepath.Dir(source.Sidecar.TLS.CA), "key.pem")},
	} {
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		out, err := exec.CommandContext(ctx, "curl", "-sS", "-k", "--cert", files.Cert, "--key", files.Key, "--json", "{}",
			"https://"+source.Sidecar.Commands+"/holdfast.v1.StatusService/Get").CombinedOutput()
		stop()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
			t.Errorf("with %s certificate: %v: %s", what, err, out)
		}
	}
	log, err := os.ReadFile(filepath.Join(l.Dir, "logs", "sidecar-source.log"))
	l.must(err)
	for _, want := range []string{"reason=other-site certificate=recovery/admin/lab", "reason=wrong-role certificate=production/vra/vra-1"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log does not say %s:\n%s", want, log)
		}
	}
}
