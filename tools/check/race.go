package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// racePackages are the shells: what has goroutines, sockets or shared memory.
var racePackages = []string{"./datapath/...", "./wire/...", "./ioengine/...", "./journal/...", "./control/...", "./bench/scenario/..."}

// alonePackages are those among them in which nothing starts a goroutine, product or test.
var alonePackages = []string{
	"wire/record", "wire/breadth", "wire/delta", "wire/reorder", "wire/shape",
	"journal/fold", "journal/retain", "journal/scrub",
	"datapath/budget", "datapath/capture/activity/regions", "datapath/cut", "datapath/dirty", "datapath/front/memdisk", "datapath/roster",
	"control/recovery",
}

// aloneTests are long tests the race detector can find nothing in and makes up to twenty
// times slower: each runs one goroutine from beginning to end, but for the last, which open
// the same store thousands of times, look at how a child process dies, or rewrite a whole disk
// on a way that shorter ones go too. All of them run in full without it.
var aloneTests = []string{
	"TestCoverage", "TestMemory", "TestScale", // journal/index
	"TestTableCrash", "TestTableErrors", "TestTableLong", "TestTableOpenErrors",
	"TestFirstSyncErrorAtEveryOperation", "TestOpenPromoterErrorAtEveryOperation", // journal/replica
	"TestParityIsKept", "TestProtectCrashAndErrors", "TestRepair", // journal/stripe
	"TestMapFlips", "TestScratchCrashAtEveryOperation", "TestScratchErrorAtEveryOperation", // journal/view
	"TestPassCrashAtEveryOperation", "TestPassErrorAtEveryOperation", "TestSettleErrorAtEveryOperation", "TestWithoutFlush",
	"TestFileAgainstModel",                                              // ioengine
	"TestDamageAtOpening", "TestDeathOnAFullDisk", "TestFullFileSystem", // journal
	"TestFailoverCrashAtEveryOperation", "TestFailoverErrorAtEveryOperation",
	"TestNothingIsTheSame", // datapath
}

// raceMemory is testMemory where each byte has two of the race detector's beside it.
const raceMemory = " GOGC=400 GOMEMLIMIT=512MiB"

// notShell says that a folder is of no shell.
func notShell(folder string) bool {
	return !slices.ContainsFunc(racePackages, func(shell string) bool { return strings.HasPrefix(folder+"/", strings.TrimSuffix(shell, "...")) })
}

// race runs the tests of the shells under the race detector.
func race(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", append([]string{"list"}, racePackages...)...).Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	packages := slices.DeleteFunc(strings.Fields(string(out)), func(pkg string) bool {
		return slices.ContainsFunc(alonePackages, func(alone string) bool { return strings.HasSuffix(pkg, "/"+alone) })
	})
	argv := slices.Concat(tests, waiting, []string{"-race", "-short", "-skip", "^(" + strings.Join(aloneTests, "|") + ")$"})
	// Each program would else sleep for a second when it ends.
	return command("CGO_ENABLED=1 GORACE=atexit_sleep_ms=0"+raceMemory, slices.Concat(argv, slices.DeleteFunc(slices.Clone(longest), notShell), packages)...)(ctx)
}
