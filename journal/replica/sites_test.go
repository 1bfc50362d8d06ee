package replica

import (
	"os"
	"regexp"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestMain sees that the tests come to every call site of the disk interface.
func TestMain(m *testing.M) {
	sites := faultdisk.RecordSites()
	os.Exit(sites.AfterTests(m.Run(), regexp.MustCompile(`(^|\.)(fs|file|sums|raw)$|^f$`)))
}
