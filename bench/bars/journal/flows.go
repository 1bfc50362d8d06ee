package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// flows is what a disk is given by an intake with promotion beside it: what fio makes of the same
// says how much of the time to an acknowledgement is the disk's own.
type flows struct {
	Rate    float64 // bytes a second into the log, and of it back
	Replica float64 // bytes a second into the replica, 64 KiB at random places
	Back    float64 // bytes a second that closed segments are read back at
	Volume  int64
	Log     int64   // bytes of the log, which is written round and round
	Seconds float64 // beside the others
}

// flowsResult is the time, in ms, within which 99 of 100 writes of 1 MiB in order end, and as many of the syncs after
// each fourth, the one added to the other: without the other flows, and beside them; and the stalls of the disk beside them.
// Writes are begun when they are due, up to 64 of them, as the records of an intake are.
type flowsResult struct {
	Alone, Beside float64
	Stalls        int
	Stalled       float64 // ms
}

const flowsAlone = 8 // seconds

// flows measures them in files that were written before, as a recycled segment and a synchronised replica were.
func (b *bench) flows(f flows) (r flowsResult, err error) {
	dir, err := b.Fresh("flows")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	at := func(name string, size int64) []string {
		return []string{"--name=" + name, "--filename=" + filepath.Join(dir, name), fmt.Sprint("--size=", size), "--direct=1"}
	}
	log, replica := at("log", f.Log), at("replica", f.Volume)
	for _, file := range [][]string{log, replica} {
		if _, err := b.fioJobs(slices.Concat(file, []string{"--rw=write", "--bs=1M", "--ioengine=psync", "--end_fsync=1"})); err != nil {
			return r, err
		}
	}
	rate := func(bytes float64) string { return fmt.Sprintf("--rate=%.0f", bytes) }
	writes := slices.Concat(log, []string{"--rw=write", "--bs=1M", "--ioengine=libaio", "--iodepth=64", "--fdatasync=4", rate(f.Rate)})
	// What is read was written some seconds before, wherever it stands: read in order from the start, beside the writer and as fast, it
	// would be what was written last.
	others := slices.Concat(
		[]string{"--name=pass"}, log[1:], []string{"--rw=randread", "--norandommap", "--bs=512k", "--ioengine=libaio", "--iodepth=8", "--fdatasync=0", rate(f.Rate)},
		replica, []string{"--rw=randwrite", "--bs=64k", "--ioengine=libaio", "--iodepth=32", "--fdatasync=512", rate(f.Replica)},
		[]string{"--name=back"}, log[1:], []string{"--rw=randread", "--norandommap", "--bs=1M", "--ioengine=psync", rate(f.Back)})
	if r.Alone, err = b.flowsTook(max(2, int(flowsAlone*b.scale)), writes); err != nil {
		return r, err
	}
	disk := bars.WatchDisk(dir)
	r.Beside, err = b.flowsTook(max(2, int(f.Seconds)), slices.Concat(writes, others))
	r.Stalls, r.Stalled = sumOf(disk())
	return r, err
}

// flowsTook runs the jobs for so many seconds, and returns what the first of them took for a write
// and its sync, in ms: 99 of 100 took no more.
func (b *bench) flowsTook(seconds int, jobs []string) (float64, error) {
	found, err := b.fioJobs(slices.Concat([]string{"--time_based", fmt.Sprint("--runtime=", seconds)}, jobs))
	if err != nil {
		return 0, err
	}
	return (found[0].Write.Took.Percentile[p99] + found[0].Sync.Took.Percentile[p99]) / 1e6, nil
}

// fioJob is what fio reports of a job.
type fioJob struct {
	Write struct {
		Bytes   int64   `json:"io_bytes"`
		Runtime int64   `json:"runtime"` // ms, without the last sync
		Took    fioTook `json:"clat_ns"`
	} `json:"write"`
	Sync struct {
		Took fioTook `json:"lat_ns"`
	} `json:"sync"`
	Runtime int64   `json:"job_runtime"` // ms
	User    float64 `json:"usr_cpu"`
	Sys     float64 `json:"sys_cpu"`
}

type fioTook struct {
	Percentile map[string]float64 `json:"percentile"` // ns
}

const p99 = "99.000000" // as fio names it

// fioJobs runs fio and returns what it reports of its jobs, in their order.
func (b *bench) fioJobs(args []string) ([]fioJob, error) {
	cmd := exec.CommandContext(b.Context, "fio", append([]string{"--output-format=json"}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio: %w", err)
	}
	return fioReport(out.String())
}

func fioReport(text string) ([]fioJob, error) {
	if i := strings.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	var report struct{ Jobs []fioJob }
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return nil, fmt.Errorf("fio: %w: %.200s", err, text)
	}
	if len(report.Jobs) == 0 {
		return nil, fmt.Errorf("fio reports no jobs: %.200s", text)
	}
	return report.Jobs, nil
}
