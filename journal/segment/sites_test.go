package segment

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// siteReceivers are the names by which this package calls files and file systems.
var siteReceivers = regexp.MustCompile(`(^|\.)(fs|fsys|file)$`)

// TestMain runs the tests and then, when all of them were asked for, names each call
// site of the disk interface that none of them came to: nothing failed or crashed there.
// Those that testdata/sites.txt names are known.
func TestMain(m *testing.M) {
	sites := faultdisk.RecordSites()
	code := m.Run()
	if code == 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.fuzz").Value.String() == "" && flag.Lookup("test.bench").Value.String() == "" {
		if err := everySite(sites); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

func everySite(sites *faultdisk.Sites) error {
	missed, all, err := sites.Missed(".", siteReceivers)
	if err != nil {
		return err
	}
	text, err := os.ReadFile("testdata/sites.txt")
	if err != nil {
		return err
	}
	var known []string
	for line := range strings.Lines(string(text)) {
		known = append(known, strings.Fields(line)[0])
	}
	missed = slices.DeleteFunc(missed, func(s string) bool { // by function: lines move
		return slices.Contains(known, strings.Fields(s)[1])
	})
	if len(missed) > 0 {
		return fmt.Errorf("of %d call sites of the disk interface no test came to:\n\t%s", all, strings.Join(missed, "\n\t"))
	}
	return nil
}
