package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/wire/shape"
	"github.com/spf13/cobra"
)

// shaping is what may leave a source, as the user sees it; its JSON is kept for ever.
type shaping struct {
	Cap     int64         `json:"cap"` // bits a second, 0 for none, as all caps here
	Windows []string      `json:"windows"`
	Zone    *string       `json:"zone"`
	Own     bool          `json:"own"`
	CapNow  int64         `json:"cap_now"`
	Window  *string       `json:"window"`
	Since   *string       `json:"since"`
	Wire    int64         `json:"wire_bytes_total"`
	Groups  []shapedGroup `json:"groups"`
}

type shapedGroup struct {
	Name     string  `json:"name"`
	Priority string  `json:"priority"`
	Held     float64 `json:"held"`
	Total    float64 `json:"held_seconds_total"`
}

func newShaping(m *holdfastv1.Shaping) shaping {
	p := m.GetPolicy()
	s := shaping{Cap: p.GetCap(), Windows: append([]string{}, p.GetWindows()...), Zone: textOrNull(p.GetZone()), Own: m.GetOwn(), CapNow: m.GetCapNow(),
		Window: textOrNull(m.GetWindow()), Since: timeText(api.Time(m.GetSince())), Wire: m.GetWireBytesTotal(), Groups: []shapedGroup{}}
	for _, g := range m.GetGroups() {
		s.Groups = append(s.Groups, shapedGroup{g.GetName(), g.GetPriority(), g.GetHeld(), g.GetHeldSecondsTotal()})
	}
	return s
}

// printShaping prints the caps as lines, and the groups as a table under them.
func (a *app) printShaping(s shaping) error {
	if a.output == "json" {
		return a.print(s, "", nil)
	}
	by := "no window holds now"
	switch {
	case s.Window != nil:
		by = "by the window " + *s.Window
	case len(s.Windows) == 0:
		by = "at all times"
	}
	lines := []string{fmt.Sprintf("cap      %s, %s", shape.Rate(s.CapNow), by)}
	if len(s.Windows) > 0 {
		for _, w := range s.Windows {
			lines = append(lines, "window   "+w)
		}
		lines = append(lines, "else     "+shape.Rate(s.Cap).String())
	}
	if s.Zone != nil {
		lines = append(lines, "zone     "+*s.Zone)
	}
	from := "the configuration"
	if s.Own {
		from = "holdfast shaping set"
	}
	lines = append(lines, "set by   "+from)
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.stdout, printable(line)); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.stdout)
	var rows [][]string
	for _, g := range s.Groups {
		rows = append(rows, []string{g.Name, g.Priority, fmt.Sprintf("%.0f %%", 100*g.Held), ageText(time.Duration(g.Total * float64(time.Second)))})
	}
	return a.print(s, "GROUP PRIORITY HELD HELD-TOTAL", rows)
}

func (a *app) shapingCommand() *cobra.Command {
	return parent("shaping", "Show and set how much may be sent, and who goes first",
		`A source keeps all that it sends under a cap, counted as the network interface counts
it: TLS, the headers of Ethernet, IP and TCP, and what is sent again. No second holds
more than 3 % above it. Windows give other caps to some hours of some days; the first
that holds the time counts. Acknowledgements and heartbeats are never held up.

Groups that have something to send at once share by priority: high gets twelve parts,
medium four, low one, and groups of one priority share alike. This holds on a link
without a cap too, once it is full.

HELD says how much of the last second a group waited only for the cap.`,
		a.shapingShow(), a.shapingSet())
}

func (a *app) shapingShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the cap, its windows, and the priorities of groups",
		Example: "  holdfast shaping show\n  holdfast shaping show -o json | jq .cap_now",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.dial(api.RoleSource)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := client.Shaping.Get(cmd.Context(), &holdfastv1.ShapingServiceGetRequest{})
			if err != nil {
				return explain(api.RoleSource, err)
			}
			return a.printShaping(newShaping(res.GetShaping()))
		},
	}
}

func (a *app) shapingSet() *cobra.Command {
	var capText, zone string
	var windows, priorities []string
	var defaults bool
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Change the cap, its windows, or priorities",
		Long: `Changes what is given and leaves the rest; --window, given once or more, replaces all
windows. It holds at once, without a restart, and over restarts: the source keeps it
in its data_dir, and its configuration counts again only after --defaults.

A window is DAYS HOURS RATE. Days are sun, mon, tue, wed, thu, fri, sat, ranges and
lists of them, or daily; hours as 08:00-18:00, over midnight too (the day is that on
which it begins), or left out for the whole day. In the night in which clocks go
forward the hour that is left out is left out; in the other it counts twice.

A cap is 500kbit at least. To stop sending, cut the link: there is no cap of 0.`,
		Example: `  holdfast shaping set --cap 20Mbps
  holdfast shaping set --window 'mon-fri 08:00-18:00 5Mbit' --window 'sat,sun none'
  holdfast shaping set --window none --cap none
  holdfast shaping set --priority erp=high --priority archive=low`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &holdfastv1.ShapingServiceSetRequest{Defaults: defaults, IdempotencyKey: api.NewKey()}
			given := cmd.Flags().Changed
			if given("cap") {
				r, err := shape.ParseRate(capText)
				if err != nil {
					return usagef("--cap: %s", plainPolicy(err))
				}
				bits := int64(r)
				req.Cap = &bits
			}
			if given("window") {
				req.Windows = &holdfastv1.ShapingWindows{}
				for _, text := range windows {
					if text == "none" && len(windows) == 1 {
						break
					}
					w, err := shape.ParseWindow(text)
					if err != nil {
						return usagef("--window: %s", plainPolicy(err))
					}
					req.Windows.Windows = append(req.Windows.Windows, w.String())
				}
			}
			if given("zone") {
				req.Zone = &zone
			}
			for _, text := range priorities {
				name, word, ok := strings.Cut(text, "=")
				if _, err := shape.ParsePriority(word); !ok || err != nil || name == "" {
					return usagef("--priority %q: want GROUP=high, GROUP=medium or GROUP=low", text)
				}
				req.Priorities = append(req.Priorities, &holdfastv1.GroupPriority{Group: name, Priority: word})
			}
			if !defaults && !given("cap") && !given("window") && !given("zone") && len(priorities) == 0 {
				return usagef("there is nothing to change: give --cap, --window, --zone, --priority or --defaults")
			}
			client, _, err := a.dial(api.RoleSource)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := client.Shaping.Set(cmd.Context(), req)
			if err != nil {
				return explain(api.RoleSource, err)
			}
			return a.printShaping(newShaping(res.GetShaping()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&capText, "cap", "", "the most that is sent where no window says otherwise, a `RATE` of at least 500kbit, or none")
	f.StringArrayVar(&windows, "window", nil, "a `WINDOW` as in 'mon-fri 08:00-18:00 5Mbit'; none takes all away")
	f.StringVar(&zone, "zone", "", "time `ZONE` of the windows, as in Europe/Zurich; empty is the machine's")
	f.StringArrayVar(&priorities, "priority", nil, "`GROUP=PRIORITY`: high, medium or low")
	f.BoolVar(&defaults, "defaults", false, "go back to the source's configuration first")
	cmd.RegisterFlagCompletionFunc("cap", cobra.FixedCompletions([]string{"none", "5Mbit", "20Mbit", "100Mbit"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("window", cobra.FixedCompletions([]string{"none"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("zone", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("priority", a.completePriorities)
	return cmd
}

// plainPolicy is what a policy's mistake says to a user, without the name of its kind.
func plainPolicy(err error) string {
	if errors.Is(err, shape.ErrPolicy) {
		return strings.ReplaceAll(err.Error(), ": "+shape.ErrPolicy.Error(), "")
	}
	return err.Error()
}

// completePriorities offers each group of the source with each priority.
func (a *app) completePriorities(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, nil, api.RoleSource, func(ctx context.Context, client *api.Client, _ *config.Context) (words []string) {
		res, _ := client.Shaping.Get(ctx, &holdfastv1.ShapingServiceGetRequest{})
		for _, g := range res.GetShaping().GetGroups() {
			for _, p := range []shape.Priority{shape.High, shape.Medium, shape.Low} {
				words = append(words, g.GetName()+"="+p.String())
			}
		}
		return words
	})
}
