package monitor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func listed(t *testing.T) []Metric {
	t.Helper()
	all := Listed(string(read(t, "METRICS.md")))
	if len(all) < 50 {
		t.Fatalf("%d metrics are listed", len(all))
	}
	return all
}

// dashboard is what of the file names metrics.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID          int
		Title, Type string
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ Expr, LegendFormat string }
	}
}

func parseDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal(read(t, "dashboard.json"), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

var shownPattern = regexp.MustCompile(`\{\{ *([a-z_]+) *\}\}`)

// TestDashboard: every query asks for metrics and labels that exist, every panel shows something, and none covers another.
func TestDashboard(t *testing.T) {
	all, d := listed(t), parseDashboard(t)
	queries, ids := 0, map[int]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d, %q, shows nothing, or its number is another's", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q covers %q", p.Title, q.Title)
			}
		}
		for _, q := range p.Targets {
			queries++
			var shown []string
			for _, m := range shownPattern.FindAllStringSubmatch(q.LegendFormat, -1) {
				shown = append(shown, m[1])
			}
			if err := check(all, plain(q.Expr), shown...); err != nil {
				t.Errorf("%q: %v", p.Title, err)
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := regexp.MustCompile(`^label_values\(([a-z_]+), ([a-z_]+)\)$`).FindStringSubmatch(v.Query)
		if m == nil {
			t.Errorf("%s: %s", v.Name, v.Query)
		} else if err := check(all, m[1], m[2]); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	if queries < 30 {
		t.Errorf("%d queries", queries)
	}
}

// plain is a query without Grafana's own words.
func plain(query string) string {
	return strings.NewReplacer("$__rate_interval", "5m", "$group", ".*").Replace(query)
}

// rules is a file of rules.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func parseRules(t *testing.T) (r rules) {
	t.Helper()
	if err := yaml.Unmarshal(read(t, "alerts.yaml"), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

var usedPattern = regexp.MustCompile(`\$labels\.([a-z_]+)`)

// TestAlerts: every rule asks for what exists, says what to do, and is shown to fire by the file of tests.
func TestAlerts(t *testing.T) {
	all, tests := listed(t), string(read(t, "alerts.test.yaml"))
	var asked strings.Builder
	for _, g := range parseRules(t).Groups {
		for _, r := range g.Rules {
			var shown []string
			for _, text := range r.Annotations {
				for _, m := range usedPattern.FindAllStringSubmatch(text, -1) {
					shown = append(shown, m[1])
				}
			}
			if err := check(all, r.Expr, shown...); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			asked.WriteString(r.Expr + "\n")
			if !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["next"] == "" {
				t.Errorf("%s: severity %q, annotations %q", r.Alert, r.Labels["severity"], r.Annotations)
			}
			if n := strings.Count(tests, fmt.Sprintf(`alertname="%s", alertstate="firing"`, r.Alert)); n != 1 {
				t.Errorf("%s: shown to fire %d times", r.Alert, n)
			}
		}
	}
	for _, must := range []string{"group_lag_seconds", "journal_level", "marks-only", "damage", "bad_checkpoints", "certificate_expiry", `role="source",state="disconnected"`} {
		if !strings.Contains(asked.String(), must) {
			t.Errorf("no alert asks for %s", must)
		}
	}
}

// TestNamesStay: what others build on keeps its name.
func TestNamesStay(t *testing.T) {
	all := listed(t)
	for name, labels := range map[string]string{
		"group_lag_seconds": "group", "group_behind_bytes": "group", "group_state": "group role state", "group_checkpoints": "group",
		"capture_writes_total": "group", "capture_bytes_total": "group", "wire_bytes_total": "direction", "pack_raw_bytes_total": "group",
		"pack_stored_bytes_total": "group", "window_bytes": "group", "spill_bytes": "group", "dirty_bytes": "group", "journal_bytes": "group part", "journal_sync_seconds": "", "errors_total": "kind",
	} {
		i := slices.IndexFunc(all, func(m Metric) bool { return m.Name == "holdfast_"+name })
		if i < 0 || strings.Join(all[i].Labels, " ") != labels {
			t.Errorf("holdfast_%s{%s} is not listed so", name, labels)
		}
	}
}

// TestPromtool: Prometheus itself takes the rules and the dashboard's queries, and fires where the tests say.
func TestPromtool(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("promtool is not installed (package prometheus): ", err)
	}
	f := func(args ...string) (string, error) {
		out, err := exec.Command("promtool", args...).CombinedOutput()
		return string(out), err
	}
	if out, err := f("check", "rules", "alerts.yaml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := f("test", "rules", "alerts.test.yaml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	type recorded struct{ Record, Expr string }
	var queries []recorded
	for _, p := range parseDashboard(t).Panels {
		for _, q := range p.Targets {
			queries = append(queries, recorded{fmt.Sprintf("q%d", len(queries)), plain(q.Expr)})
		}
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": queries}}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := f("check", "rules", name); err != nil || !strings.Contains(out, fmt.Sprintf("%d rules found", len(queries))) {
		t.Errorf("%v\n%s", err, out)
	}
	// It does refuse.
	wrong := strings.Replace(string(read(t, "alerts.test.yaml")), `alertname="HoldfastDamage", alertstate="firing", group="shop"`, `alertname="HoldfastDamage", alertstate="firing", group="calm"`, 1)
	name = filepath.Join(t.TempDir(), "wrong.yaml")
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(wrong, "alerts.yaml]", wd+"/alerts.yaml]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := f("test", "rules", name); err == nil || !strings.Contains(out, "HoldfastDamage") {
		t.Errorf("a test that is wrong passes: %s", out)
	}
}

// TestCheck: a name that nobody has is found wherever it stands.
func TestCheck(t *testing.T) {
	all := []Metric{{Name: "a_bytes", Type: gauge, Labels: []string{"group", "part"}}, {Name: "b_total", Type: counter}, {Name: "c_seconds", Type: histogram, Labels: []string{"group"}}}
	f := func(want, query string, shown ...string) {
		t.Helper()
		err := check(all, query, shown...)
		if (err == nil) != (want == "") || err != nil && !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	f("", "a_bytes", "group", "instance")
	f("", `sum by (group, part) (rate(a_bytes{group=~"x|y",job="z"}[5m])) / on (group) group_left a_bytes > bool 1e3 and up == 0`)
	f("", `sum(a_bytes{part!="log"}) by (part) or vector(0)`)
	f("", `histogram_quantile(0.9, sum by (le, group) (rate(c_seconds_bucket[1h30m] offset 5m)))`, "group")
	f("", "c_seconds_count + c_seconds_sum")
	f("", "b_total > 21 * 86400")
	f("there is no metric a_byte", "a_byte")
	f("there is no metric x", `rate(x[5m]) + b_total`)
	f("there is no metric c_seconds", "c_seconds")
	f("there is no metric b_total_bucket", "b_total_bucket")
	f("a_bytes has no label grp", `a_bytes{grp="x"}`)
	f("b_total has no label group", `a_bytes{group="x"} + b_total{group="x"}`)
	f("has a label le", `sum by (le) (a_bytes)`)
	f("has a label grp", `sum(a_bytes) without (grp)`)
	f("has a label stage", "a_bytes", "stage")
	f("no function median is known here", "median(a_bytes)")
	f("names no metric", "vector(1)")
	f(`cannot be read from "; b" on`, "a_bytes; b")
	f("want a label, how it is compared, and a text", "a_bytes{group}")
	f("want a label, how it is compared, and a text", `a_bytes{group="x" "y"}`)
}

// described is a collector of what its functions say.
type described []*prometheus.Desc

func (d described) Describe(ch chan<- *prometheus.Desc) {
	for _, one := range d {
		ch <- one
	}
}
func (described) Collect(chan<- prometheus.Metric) {}

// TestHold: a list that lacks a metric, has one too much or says something else of it is refused, and can be written anew.
func TestHold(t *testing.T) {
	c := described{prometheus.NewDesc("b_total", `Says "hello", thrice.`, nil, nil), prometheus.NewDesc("a_bytes", "A.", []string{"group", "part"}, nil), prometheus.NewDesc("c_seconds", "C.", nil, nil)}
	have, err := Described([]string{"c_seconds"}, c)
	if err != nil {
		t.Fatal(err)
	}
	const good = "# M\n\n## one\n\n" + tableHead + "| `a_bytes` | gauge | group, part | A. |\n| `b_total` | counter |  | Says \"hello\", thrice. |\n| `c_seconds` | histogram |  | C. |\n\n## two\n\nmore\n"
	f := func(text, want string) {
		t.Helper()
		name := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Hold(name, "one", have, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
		if err := Hold(name, "one", have, true); err == nil && string(read(t, name)) != good {
			t.Errorf("wrote %s", read(t, name))
		}
	}
	f(good, "")
	f(strings.Replace(good, "| A. |", "| Other. |", 1), "lists for one")
	f(strings.Replace(good, "group, part", "group", 1), "lists for one")
	f(strings.Replace(good, "| `b_total` | counter |  | Says \"hello\", thrice. |\n", "", 1), "lists for one")
	f(strings.Replace(good, "## one", "## other", 1), `no part "one"`)
	f(strings.Replace(good, "| name", "| nom", 1), `no table under "one"`)
	if got := Listed(good); len(got) != 3 || !slices.Equal(got[0].Labels, have[0].Labels) || got[1].Help != have[1].Help || got[2].Type != histogram {
		t.Errorf("read back: %+v", got)
	}
	if err := Hold(filepath.Join(t.TempDir(), "none"), "one", have, false); err == nil {
		t.Error("no file")
	}
	if _, err := Described(nil, described{prometheus.NewDesc("d", "D.", nil, prometheus.Labels{"x": "y"})}); err == nil {
		t.Error("a label that is always the same has no place in the list")
	}
}
