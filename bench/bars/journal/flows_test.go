package main

import "testing"

// fio says something before its report now and then, and names the parts as it has for years.
func TestFioReport(t *testing.T) {
	jobs, err := fioReport(`note: both iodepth >= 1 and synchronous I/O engine are selected
{"jobs": [{"write": {"io_bytes": 5, "clat_ns": {"percentile": {"99.000000": 7000}}}, "sync": {"lat_ns": {"percentile": {"99.000000": 3000}}}}, {}]}`)
	if err != nil || len(jobs) != 2 || jobs[0].Write.Bytes != 5 || jobs[0].Write.Took.Percentile[p99] != 7000 || jobs[0].Sync.Took.Percentile[p99] != 3000 {
		t.Errorf("%+v, %v", jobs, err)
	}
	for _, text := range []string{"", "{}", `{"jobs": []}`, `{"jobs": 1}`} {
		if jobs, err := fioReport(text); err == nil {
			t.Errorf("%q: %+v", text, jobs)
		}
	}
}
