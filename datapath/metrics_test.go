package datapath

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/sidecar/monitor"
)

const listOfMetrics = "../control/sidecar/monitor/METRICS.md"

func described(t *testing.T) []monitor.Metric {
	t.Helper()
	have, err := monitor.Described([]string{"holdfast_journal_sync_seconds", "holdfast_group_hold_seconds"}, Metrics(Identity{}, nil, &Target{syncs: newSyncs()}))
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// TestMetricsAreListed: the list names what a VRA has, and says what each is.
func TestMetricsAreListed(t *testing.T) {
	if err := monitor.Hold(listOfMetrics, "vra", described(t), *update); err != nil {
		t.Error(err)
	}
}

// checkMetrics holds the answer to a monitoring system to the list: each is of its type, and all are there but the named.
func checkMetrics(t *testing.T, answer string, absent ...string) {
	t.Helper()
	for _, m := range described(t) {
		has := strings.Contains(answer, fmt.Sprintf("# TYPE %s %s\n", m.Name, m.Type))
		if want := !slices.Contains(absent, strings.TrimPrefix(m.Name, "holdfast_")); has != want {
			t.Errorf("%s, a %s: collected %v, want %v", m.Name, m.Type, has, want)
		}
	}
}

// holdMetrics looks for lines in what a monitoring system is answered, which it returns.
func holdMetrics(t *testing.T, metrics http.Handler, lines ...string) string {
	t.Helper()
	answer := httptest.NewRecorder()
	metrics.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range lines {
		if !strings.Contains(answer.Body.String(), want+"\n") {
			t.Errorf("no %s in %s", want, answer.Body)
		}
	}
	return answer.Body.String()
}
