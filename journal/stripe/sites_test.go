package stripe

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestMain sees that the tests come to every call site of the disk interface, and make it
// fail. Of a planted bug it is enough to know that it is found: nothing is made smaller, and
// of random histories there are more.
func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST_PLANTED") != "" {
		if err := errors.Join(flag.Set("rapid.shrinktime", "0s"), flag.Set("rapid.checks", "100"), flag.Set("rapid.nofailfile", "true")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	sites := faultdisk.RecordSites()
	os.Exit(sites.AfterTests(m.Run()))
}
