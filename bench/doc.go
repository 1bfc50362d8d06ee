// Package bench measures one VRA pair as a whole: two sites of real processes on
// this machine, a seeded guest, a link with or without a limit.
//
//	go test -run '^$' -bench Capacity ./bench
//
// BENCHMARKS.md says what each unit means and is written from the raw results by
// bench/report. Everything shares one machine, the load too: a rate here is what is
// left, a ratio and CPU seconds for each GiB say more.
package bench
