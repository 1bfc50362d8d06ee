package nbd

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkNbdkit compares with nbdkit's memory plugin under fio: five pairs of
// rounds of a second, order alternated.
//
//	go test ./datapath/front/nbd -run '^$' -bench Nbdkit -benchtime 1x
func BenchmarkNbdkit(b *testing.B) {
	const pairs = 5
	peer := filepath.Join(b.TempDir(), "peer")
	startNbdkit(b, peer)
	e, _ := memory("", 256<<20)
	s := serve(b, e)
	peerURI := URI{Network: "unix", Address: peer}.String()
	f := func(name string, args ...string) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var ours, theirs, ratios []float64
				fio(b, s.uri(""), args)
				fio(b, peerURI, args)
				for i := range pairs {
					var o, t float64
					if i%2 == 0 {
						o, t = fio(b, s.uri(""), args), fio(b, peerURI, args)
					} else {
						t, o = fio(b, peerURI, args), fio(b, s.uri(""), args)
					}
					ours, theirs, ratios = append(ours, o), append(theirs, t), append(ratios, o/t)
				}
				b.ReportMetric(median(ours), "iops")
				b.ReportMetric(median(theirs), "nbdkit-iops")
				b.ReportMetric(median(ratios), "ratio")
				b.ReportMetric(slices.Min(ratios), "ratio-min")
				b.ReportMetric(slices.Max(ratios), "ratio-max")
			}
		})
	}
	f("randwrite/4k/depth=1", "--rw=randwrite", "--bs=4k", "--iodepth=1")
	f("randwrite/4k/depth=32", "--rw=randwrite", "--bs=4k", "--iodepth=32")
	f("randread/4k/depth=32", "--rw=randread", "--bs=4k", "--iodepth=32")
	f("write/1m/depth=4", "--rw=write", "--bs=1m", "--iodepth=4")
	f("read/1m/depth=4", "--rw=read", "--bs=1m", "--iodepth=4")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func startNbdkit(b *testing.B, socket string) {
	b.Helper()
	cmd := exec.Command("nbdkit", "-f", "-U", socket, "memory", "256M")
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v; install it: apt-get install nbdkit", err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(5 * time.Second); ; {
		c, err := Dial(context.Background(), URI{Network: "unix", Address: socket}.String())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			b.Fatal(err)
		}
	}
}

// fio runs for a second and returns the operations a second.
func fio(b *testing.B, uri string, args []string) float64 {
	b.Helper()
	cmd := exec.Command("fio", fioArgs(uri, append(args, "--size=256m", "--time_based", "--runtime=1", "--output-format=json")...)...)
	cmd.Dir = b.TempDir()
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	var result struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out[strings.IndexByte(string(out), '{'):], &result); err != nil || len(result.Jobs) == 0 {
		b.Fatalf("fio says %q (%v)", out, err)
	}
	return result.Jobs[0].Read.IOPS + result.Jobs[0].Write.IOPS
}
