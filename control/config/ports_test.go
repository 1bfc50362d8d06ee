package config

import (
	"strings"
	"testing"
)

// TestOnePort: a target listens on one port or two, a source dials one or two, and
// never on both ways at once.
func TestOnePort(t *testing.T) {
	f := func(want string, change func(*VRA)) {
		t.Helper()
		c := sample()
		change(c)
		text, err := Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseVRA(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err == nil && (back.Target.Listen != c.Target.Listen || back.Target.ListenData != c.Target.ListenData || back.Source.Groups[0].Target != c.Source.Groups[0].Target) {
			t.Errorf("%+v came back as %+v", c.Target, back.Target)
		}
	}
	one := func(c *VRA) { c.Target.ListenControl, c.Target.ListenData, c.Target.Listen = "", "", "[::]:4008" }
	dialled := func(e Endpoint) func(*VRA) { return func(c *VRA) { c.Source.Groups[0].Target = e } }
	f("", one)
	f("", dialled(Endpoint{Address: "target.example:4008"}))
	f("", dialled(Endpoint{Address: "[2001:db8::1]:4008"}))
	f("target.listen: is there, and so is 127.0.0.1:4007", func(c *VRA) { c.Target.Listen = ":4008" })
	f("is taken by target.listen", func(c *VRA) { one(c); c.MetricsListen = "127.0.0.1:4008" })
	f("target.listen: \"x\": want host:port", func(c *VRA) { one(c); c.Target.Listen = "x" })
	f("target.address: is there, and so is a:1", dialled(Endpoint{Address: "b:1", Control: "a:1"}))
	f("target.address: \":4008\": want host:port", dialled(Endpoint{Address: ":4008"}))
	f("write address where one port takes both", dialled(Endpoint{Control: "a:1", Data: "a:1"}))
	f("target.data: is missing", dialled(Endpoint{Control: "a:1"}))
}
