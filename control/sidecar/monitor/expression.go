package monitor

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// use is what an expression asks of one metric, and what it does with labels beside that.
type use struct {
	name     string
	matchers map[string]string // label to the value or pattern it is matched with
}

// expression is what a query in the language of Prometheus names.
type expression struct {
	metrics []use
	labels  []string // of by, without, on, ignoring, group_left and group_right
}

var (
	tokenPattern = regexp.MustCompile(`^(?:\s+|"(?:[^"\\]|\\.)*"|'[^']*'|\$?[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9.]+[a-z]*(?:[0-9]+[a-z]+)*|=~|!~|!=|==|>=|<=|[-+*/%^(){}\[\],=<>:@])`)
	wordPattern  = regexp.MustCompile(`^[a-zA-Z_:]`)
	// What may stand before a list of labels, and the other words of the language.
	lists     = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	operators = []string{"and", "or", "unless", "bool", "offset", "inf", "nan"}
	functions = []string{"sum", "min", "max", "avg", "count", "topk", "rate", "irate", "increase", "delta", "deriv", "predict_linear",
		"histogram_quantile", "time", "clamp_min", "clamp_max", "absent", "vector", "label_replace", "max_over_time", "min_over_time",
		"avg_over_time", "changes", "label_values", "sort_desc", "scalar"}
)

// parse finds the names in a query. What it does not know is an error: nothing is passed over.
func parse(text string) (e expression, err error) {
	tokens, err := tokens(text)
	if err != nil {
		return e, err
	}
	next := func(i int) string {
		if i < len(tokens) {
			return tokens[i]
		}
		return ""
	}
	for i := 0; i < len(tokens); i++ {
		word := tokens[i]
		switch {
		case !wordPattern.MatchString(word) || slices.Contains(operators, strings.ToLower(word)):
		case slices.Contains(lists, word):
			if next(i+1) != "(" {
				continue // group_left may stand alone
			}
			for i += 2; i < len(tokens) && tokens[i] != ")"; i++ {
				if tokens[i] != "," {
					e.labels = append(e.labels, tokens[i])
				}
			}
		case next(i+1) == "(" || slices.Contains(lists, next(i+1)) && slices.Contains(functions, word):
			if !slices.Contains(functions, word) {
				return e, fmt.Errorf("%s: no function %s is known here", text, word)
			}
		default:
			u := use{name: word, matchers: map[string]string{}}
			if next(i+1) == "{" {
				for i += 2; i < len(tokens) && tokens[i] != "}"; i++ {
					if tokens[i] == "," {
						continue
					}
					if !wordPattern.MatchString(tokens[i]) || !slices.Contains([]string{"=", "!=", "=~", "!~"}, next(i+1)) || !strings.HasPrefix(next(i+2), `"`) {
						return e, fmt.Errorf("%s: at %s: want a label, how it is compared, and a text", text, tokens[i])
					}
					u.matchers[tokens[i]] = strings.Trim(tokens[i+2], `"`)
					i += 2
				}
			}
			e.metrics = append(e.metrics, u)
		}
	}
	if len(e.metrics) == 0 {
		return e, fmt.Errorf("%s: names no metric", text)
	}
	return e, nil
}

func tokens(text string) (all []string, err error) {
	for rest := text; rest != ""; {
		t := tokenPattern.FindString(rest)
		if t == "" {
			return nil, fmt.Errorf("%s: cannot be read from %q on", text, rest)
		}
		if strings.TrimSpace(t) != "" {
			all = append(all, t)
		}
		rest = rest[len(t):]
	}
	return all, nil
}

// added are the labels that Prometheus itself puts on what it collects.
var added = []string{"instance", "job"}

// check says which names of a query, and of the labels that are shown beside it, no listed metric has.
func check(all []Metric, query string, shown ...string) error {
	e, err := parse(query)
	if err != nil {
		return err
	}
	known := slices.Clone(added)
	for _, u := range e.metrics {
		if u.name == "up" { // of Prometheus itself
			continue
		}
		labels, ok := labelsOf(all, u.name)
		if !ok {
			return fmt.Errorf("%s: there is no metric %s", query, u.name)
		}
		known = append(known, labels...)
		for label := range u.matchers {
			if !slices.Contains(labels, label) && !slices.Contains(added, label) {
				return fmt.Errorf("%s: %s has no label %s", query, u.name, label)
			}
		}
	}
	for _, label := range slices.Concat(e.labels, shown) {
		if !slices.Contains(known, label) {
			return fmt.Errorf("%s: none of its metrics has a label %s", query, label)
		}
	}
	return nil
}

// labelsOf are the labels of a series, which may be a part of a histogram.
func labelsOf(all []Metric, name string) ([]string, bool) {
	for _, m := range all {
		switch {
		case m.Type != histogram && m.Name == name, m.Type == histogram && (name == m.Name+"_sum" || name == m.Name+"_count"):
			return m.Labels, true
		case m.Type == histogram && name == m.Name+"_bucket":
			return append(slices.Clone(m.Labels), "le"), true
		}
	}
	return nil, false
}
