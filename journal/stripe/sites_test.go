package stripe

import (
	"os"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestMain sees that the tests come to every call site of the disk interface, and make it fail.
func TestMain(m *testing.M) {
	sites := faultdisk.RecordSites()
	os.Exit(sites.AfterTests(m.Run()))
}
