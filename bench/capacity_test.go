package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/load"
)

const (
	volumeBytes = 512 << 20
	lanTime     = 8 * time.Second
	wanTime     = 12 * time.Second
	wanRate     = 50e6 / 8 // bytes a second
)

// BenchmarkCapacity runs three guests over a link without limit, as fast as they
// can, and over one of 50 Mb/s, at a rate whose packed bytes fill four fifths of it.
func BenchmarkCapacity(b *testing.B) {
	bin := b.TempDir()
	if err := drive.Build(b.Context(), "..", bin, ""); err != nil {
		b.Fatal(err)
	}
	for _, p := range []load.Profile{load.ProfileDB, load.ProfileMixed, load.ProfileRandom} {
		b.Run(p.Name+"/lan", func(b *testing.B) { runs(b, bin, p, "none", lanTime) })
		b.Run(p.Name+"/50mbit", func(b *testing.B) {
			p.BytesPerSecond = int64(0.8 * wanRate * packs(p.Kind))
			runs(b, bin, p, "50Mbit", wanTime)
		})
	}
}

// packs is about how many times the kind shrinks on the wire.
func packs(k load.Kind) float64 {
	return map[load.Kind]float64{load.DB: 2.0, load.Mixed: 1.35, load.Random: 0.97}[k]
}

func runs(b *testing.B, bin string, p load.Profile, link string, d time.Duration) {
	for b.Loop() {
		run(b, bin, p, link, d)
	}
}

// run is one guest on one pair: it starts a lab, writes for d, and waits until all of
// it is durable at the second site; only then the clock stops.
func run(b *testing.B, bin string, p load.Profile, link string, d time.Duration) {
	ctx := b.Context()
	dir := filepath.Join(b.TempDir(), "lab")
	l, err := drive.Up(ctx, bin, dir, nil, "--volumes", "1", "--size", fmt.Sprint(volumeBytes), "--link", link)
	defer func() {
		if err := l.Down(); err != nil {
			b.Error(err)
		}
	}()
	if err != nil {
		b.Fatal(err)
	}
	corpus, h := load.Corpus(p.Kind, 1), &load.History{}
	s := l.Stamper(1, p, 8, corpus, h)
	pids, err := processes(ctx, l)
	if err != nil {
		b.Fatal(err)
	}
	before, sourceCPU, targetCPU, start := sent(b, l), cpuSeconds(b, pids[:2]), cpuSeconds(b, pids[2:]), time.Now()

	write, stop := context.WithTimeout(ctx, d)
	defer stop()
	lags, resyncs := make(chan []float64), 0
	go func() { lags <- sampleLag(write, l, &resyncs) }()
	if err := s.Run(write); err != nil {
		b.Fatal(err)
	}
	lag := <-lags
	last, err := l.Checkpoint(ctx, "end") // listed: every write before it is durable there
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	sourceCPU, targetCPU = cpuSeconds(b, pids[:2])-sourceCPU, cpuSeconds(b, pids[2:])-targetCPU
	if v, err := l.Compare(ctx, last.ID, 1, h, corpus, true); err != nil {
		b.Fatalf("the last checkpoint is not what the guest wrote: %v (%+v)", err, v)
	}
	guest := float64(s.Stats().Bytes)
	rate := guest / 1e6 / took.Seconds()
	b.ReportMetric(rate, "MB/s")
	b.ReportMetric(float64(sent(b, l)-before)/guest, "wire/guest")
	if len(lag) > 0 {
		b.ReportMetric(percentile(lag, 50)*1000, "lag-p50-ms")
		b.ReportMetric(percentile(lag, 99)*1000, "lag-p99-ms")
	}
	gib := guest / (1 << 30)
	b.ReportMetric((sourceCPU+targetCPU)/gib, "cpu-s/GiB")
	b.ReportMetric(sourceCPU/gib, "source-cpu-s/GiB")
	b.ReportMetric(targetCPU/gib, "target-cpu-s/GiB")
	b.ReportMetric(float64(resyncs), "resyncs")
	if link == "none" {
		b.ReportMetric(rate/nbdcopyRate(b, corpus), "x-nbdcopy")
	}
}

// processes are filter and VRA of the source, then the VRA of the target.
func processes(ctx context.Context, l *drive.Lab) (pids []int, err error) {
	for _, name := range []string{"vra-filter", "vra-source", "vra-target"} {
		pid, err := l.PID(ctx, name)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func sent(b *testing.B, l *drive.Lab) int64 {
	m, err := l.Machinery(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return m.Link.Sent
}

// cpuSeconds is user and system time of the processes.
func cpuSeconds(b *testing.B, pids []int) (total float64) {
	for _, pid := range pids {
		cpu, err := bars.CPUOfProcess(pid)
		if err != nil {
			b.Fatalf("a process of the lab has ended: %v", err)
		}
		total += cpu
	}
	return total
}

// sampleLag asks for the lag until ctx ends, and counts how often a resync began. A
// lag that is not known is no sample.
func sampleLag(ctx context.Context, l *drive.Lab, resyncs *int) (lag []float64) {
	before := ""
	for ctx.Err() == nil {
		s, err := l.Status(ctx)
		if err != nil {
			continue
		}
		if s.LagSeconds != nil {
			lag = append(lag, *s.LagSeconds)
		}
		if s.State != before && (s.State == "resync" || s.State == "marks-only") && before != "resync" && before != "marks-only" {
			*resyncs++
		}
		before = s.State
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return lag
}

func percentile(v []float64, p int) float64 {
	slices.Sort(v)
	return v[min(len(v)-1, len(v)*p/100)]
}

// nbdcopyRate is the rate in MB/s at which nbdcopy brings 256 MiB of the corpus to
// a plain NBD server that writes a file, synced before the clock stops.
func nbdcopyRate(b *testing.B, corpus []byte) float64 {
	const copies = 16
	dir := b.TempDir()
	from, to, socket := filepath.Join(dir, "from"), filepath.Join(dir, "to"), filepath.Join(dir, "s")
	f, err := os.Create(from)
	if err != nil {
		b.Fatal(err)
	}
	for range copies {
		if _, err := f.Write(corpus); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(to, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(to, int64(copies*len(corpus))); err != nil {
		b.Fatal(err)
	}
	server := exec.Command("nbdkit", "-f", "-U", socket, "file", to)
	if err := server.Start(); err != nil {
		b.Fatalf("nbdkit: %v; install the Debian packages nbdkit and libnbd-bin", err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait()
	}()
	for range 200 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	start := time.Now()
	if out, err := exec.Command("nbdcopy", "--flush", from, "nbd+unix:///?socket="+socket).CombinedOutput(); err != nil {
		b.Fatalf("nbdcopy: %v: %s", err, out)
	}
	return float64(copies*len(corpus)) / 1e6 / time.Since(start).Seconds()
}
