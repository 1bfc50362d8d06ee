package datapath

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/failover"
)

// TestEndFirst: nobody is sent to roll back what was committed.
func TestEndFirst(t *testing.T) {
	for s := range failover.Last + 1 {
		back := strings.Contains(endFirst(s), "failover rollback")
		if committed := s == failover.Committed || s == failover.Settled || s == failover.Passing || s == failover.Moving; back == committed || strings.Contains(endFirst(s), "reverse") != committed {
			t.Errorf("%s: %s", s, endFirst(s))
		}
	}
}
