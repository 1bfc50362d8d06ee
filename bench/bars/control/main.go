// Command control measures what the sidecar is held to (the rows of bars.Control) and keeps the samples in
// bench/results/bars-control.jsonl.
//
// The sidecars are a lab's, asked over mutual TLS on loopback as anybody would ask them. The row of 300 groups is a
// real vra of 300 groups beside it, whose filters are not there and whose target does not answer: it tells all
// of each group that a status has, and the sidecar passes it on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, " (2 GB)")
	idle := flag.Duration("idle", 10*time.Minute, "how long the idle sidecar is looked at; the bars say 10m")
	calls := flag.Int("calls", 2000, "calls for each figure of the status")
	cuts := flag.Int("cuts", 300, "cuts for the figure of cuts")
	flag.Parse()
	o.Main(nil, func(r *bars.Run) error {
		b := &bench{Run: r, idle: *idle, calls: *calls, cuts: *cuts}
		defer b.close()
		return r.Measure("control", bars.Head{
			Title: "The bars of the sidecar", Command: "make bars-control", Note: "sidecar, vra and whoever asks share it",
		}, o.Keep, []bars.Measure{
			{Rows: []string{"idle-memory", "idle-cpu"}, Do: b.quiet},
			{Rows: []string{"status-300"}, Do: b.status},
			{Rows: []string{"cut"}, Do: b.cut},
		})
	})
}

// bench is one run of the bars.
type bench struct {
	*bars.Run
	idle        time.Duration
	calls, cuts int

	binaries string
	lab      *drive.Lab
	stop     []func() error
}

func (b *bench) close() {
	for i := len(b.stop) - 1; i >= 0; i-- {
		if err := b.stop[i](); err != nil {
			fmt.Println("bars:", err)
		}
	}
}

// build makes the programs, once.
func (b *bench) build() (err error) {
	if b.binaries != "" {
		return nil
	}
	if b.binaries, err = b.Fresh("bin"); err != nil {
		return err
	}
	return drive.Build(b.Context, ".", b.binaries, "")
}

// begin starts the lab, once.
func (b *bench) begin() (err error) {
	if b.lab != nil {
		return nil
	}
	if err := b.build(); err != nil {
		return err
	}
	// The interval is the longest: what is measured is a cut that somebody asks for.
	if b.lab, err = drive.Up(b.Context, b.binaries, filepath.Join(b.Dir, "lab"), nil, "--size", "64MiB", "--interval", "1m"); err != nil {
		return err
	}
	b.stop = append(b.stop, b.lab.Down)
	return nil
}

// client asks the sidecar of a site of the lab.
func (b *bench) client(role string) (*api.Client, error) {
	c, err := config.LoadContext(filepath.Join(b.lab.Dir, "remote.yaml"))
	if err != nil {
		return nil, err
	}
	v, ok := c.VRA(role)
	if !ok || v.Sidecar == nil {
		return nil, fmt.Errorf("the lab has no sidecar of its %s", role)
	}
	t := v.Sidecar.TLS
	trust, err := pairing.LoadTrust(t.CA, t.Cert, t.Key)
	if err != nil {
		return nil, err
	}
	return api.DialTLS(api.Addresses{Commands: v.Sidecar.Commands, Checkpoints: v.Sidecar.Checkpoints, Logs: v.Sidecar.Logs}, trust.Client(api.RoleSidecar)), nil
}

// resident is what a process holds in memory, in MiB.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 64)
			return n / 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// lookEvery is how often an idle sidecar's memory is looked at.
const lookEvery = time.Second

// quiet looks at a sidecar that nobody asks.
func (b *bench) quiet() error {
	if err := b.begin(); err != nil {
		return err
	}
	pid, err := b.lab.PID(b.Context, "sidecar-source")
	if err != nil {
		return err
	}
	before, err := bars.CPUOfProcess(pid)
	if err != nil {
		return err
	}
	began, most := bars.Look(), 0.0
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for time.Since(began.At) < b.idle {
		now, err := resident(pid)
		if err != nil {
			return err
		}
		most = max(most, now)
		select {
		case <-look.C:
		case <-b.Context.Done():
			return b.Context.Err()
		}
	}
	after, err := bars.CPUOfProcess(pid)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("one group, %v, looked at each second", b.idle)
	b.Sample(bars.Sample{Row: "idle-memory", Value: most, Note: note})
	b.Sample(bars.Sample{Row: "idle-cpu", Value: 100 * (after - before) / time.Since(began.At).Seconds(), Note: note})
	return nil
}

// timed makes calls one after the other, none within a time of the one before it, and returns how long they took, the shortest first.
func timed(n int, every time.Duration, call func(i int) error) ([]time.Duration, error) {
	took := make([]time.Duration, 0, n)
	next := time.Now()
	for i := range n {
		time.Sleep(time.Until(next))
		next = time.Now().Add(every)
		began := time.Now()
		if err := call(i); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took, nil
}

func p99(sorted []time.Duration) time.Duration { return sorted[(len(sorted)*99+99)/100-1] }

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// status asks for 300 groups, over the sidecar and, beside it, at the vra's own socket. It comes less often than
// the limit of a caller allows.
func (b *bench) status() error {
	if err := b.build(); err != nil {
		return err
	}
	for range b.Pairs {
		if err := b.status300(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) status300() (err error) {
	const groups = 300
	dir, err := b.Fresh("many")
	if err != nil {
		return err
	}
	m := &many{dir: dir, binaries: b.binaries, ctx: b.Context}
	defer func() { err = errors.Join(err, m.end()) }()
	if err := m.start(groups); err != nil {
		return err
	}
	began := bars.Look()
	ask := func(c *api.Client) ([]time.Duration, error) {
		return timed(b.calls, 0, func(int) error {
			res, err := c.Status.Get(b.Context, &holdfastv1.StatusServiceGetRequest{})
			if err == nil && len(res.Groups) != groups {
				err = fmt.Errorf("%d groups", len(res.Groups))
			}
			return err
		})
	}
	direct := api.DialUnix(m.vra.Socket)
	defer direct.Close()
	theirs, err := ask(direct)
	if err != nil {
		return err
	}
	over := api.DialTLS(m.addresses, m.trust.Client(api.RoleSidecar))
	defer over.Close()
	ours, err := ask(over)
	if err != nil {
		return err
	}
	cpu, err := m.cpu()
	if err != nil {
		return err
	}
	b.Sample(bars.Sample{Row: "status-300", Value: ms(p99(ours)), Ours: ms(p99(ours)), Peer: ms(p99(theirs)), OursUnit: "ms", Foreign: began.Foreign(cpu),
		Note: fmt.Sprintf("p50 %.2f ms; peer: at the vra's own socket, p50 %.2f ms; %d calls each", ms(ours[len(ours)/2]), ms(theirs[len(theirs)/2]), b.calls)})
	return nil
}

// cutEvery keeps cuts within the lab's limit of a caller, 100 calls a second, which those that wait for nothing exceed.
const cutEvery = 20 * time.Millisecond

// cut orders cuts over the source's sidecar, each answered once it is listed at the target.
func (b *bench) cut() error {
	if err := b.begin(); err != nil {
		return err
	}
	c, err := b.client(api.RoleSource)
	if err != nil {
		return err
	}
	defer c.Close()
	for range b.Pairs {
		sum, syncs, err := b.syncs()
		if err != nil {
			return err
		}
		took, err := timed(b.cuts, cutEvery, func(i int) error {
			_, err := c.Checkpoints.Create(b.Context, &holdfastv1.CheckpointsServiceCreateRequest{Group: b.lab.Group, Tag: fmt.Sprint("cut ", i), IdempotencyKey: api.NewKey()})
			return err
		})
		if err != nil {
			return err
		}
		sumNow, syncsNow, err := b.syncs()
		if err != nil {
			return err
		}
		mean := time.Duration((sumNow - sum) / max(1, syncsNow-syncs) * 1e9)
		b.Sample(bars.Sample{Row: "cut", Value: ms(p99(took) - mean), Ours: ms(p99(took)), Peer: ms(mean), OursUnit: "ms",
			Note: fmt.Sprintf("p50 %.2f ms; peer: the target's sync, mean of %.0f; %d cuts, one each %v, idle guest", ms(took[len(took)/2]), syncsNow-syncs, b.cuts, cutEvery)})
	}
	return nil
}

// syncs is how long the target's syncs took so far, in seconds, and how many there were.
func (b *bench) syncs() (sum, count float64, err error) {
	c, err := config.LoadContext(b.lab.Context)
	if err != nil {
		return 0, 0, err
	}
	v, _ := c.VRA(api.RoleTarget)
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", v.Socket)
	}}}
	res, err := h.Get("http://vra/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, 0, err
	}
	value := func(name string) float64 {
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, name+" "); ok {
				f, parseErr := strconv.ParseFloat(strings.TrimSpace(v), 64)
				err = errors.Join(err, parseErr)
				return f
			}
		}
		err = fmt.Errorf("the target's metrics lack %s", name)
		return 0
	}
	sum, count = value("holdfast_journal_sync_seconds_sum"), value("holdfast_journal_sync_seconds_count")
	return sum, count, err
}
