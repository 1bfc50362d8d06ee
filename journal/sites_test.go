package journal

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// runTests sees that the tests come to every call site of the disk interface, and make it
// fail. Of a planted bug it is enough to know that it is found: nothing is made smaller, and
// of random histories there are more.
func runTests(m *testing.M) int {
	debug.SetGCPercent(400) // thousands of small stores: a fifth of the time would go into collecting them
	if os.Getenv("HOLDFAST_PLANTED") != "" {
		if err := errors.Join(flag.Set("rapid.shrinktime", "0s"), flag.Set("rapid.checks", "1000"), flag.Set("rapid.nofailfile", "true")); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	sites := faultdisk.RecordSites()
	return sites.AfterTests(m.Run())
}
