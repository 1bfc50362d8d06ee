package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

const head = `# API reference

Written by tools/apidoc from the comments of the .proto files: change those, and run ` + "`make generate`" + `.

A call is a POST to the path that stands at it, with protobuf or JSON (Connect, gRPC and gRPC-Web are spoken; a stream needs one of
them). Names of fields are those of the table in protobuf, and in lower camel case in JSON: ` + "`lag_seconds`" + ` is ` + "`lagSeconds`" + `. There
64 bit numbers are strings, and bytes are base64. What is marked *optional*, and each message, may be absent: so it
is said that something is not known, and never by a zero.

Any call may fail with ` + "`not_found`" + ` for a group that is not there, ` + "`invalid_argument`" + ` when no group is named and there is not exactly one,
` + "`failed_precondition`" + ` when the other end of the group is the one to ask, ` + "`resource_exhausted`" + ` for a request above 1 MiB
(over a sidecar above 64 KiB, or when the caller is over its limits), ` + "`permission_denied`" + ` over a sidecar when it is not for the caller's role,
` + "`deadline_exceeded`" + ` and ` + "`unavailable`" + ` (try again), and ` + "`internal`" + `. What a call can fail with beside that stands at it. An error
carries a message and an ErrorInfo, which says what to do next.

Lists come by pages: ask again with the answer's next_page_token as page_token until it is empty. A call that changes something names the failover
that it is for (those of RecoveryService: again they change nothing), or takes an
idempotency key: when it succeeded a repetition gets the same answer, also after the VRA was started anew, as long as it is among the last 1024.
Another request with the key is refused with ` + "`invalid_argument`" + `, as is JSON with a field that there is not, and with ` + "`failed_precondition`" + `, where it changes something, a
request that says more than this release knows.
A server that is ending answers ` + "`unavailable`" + `, and ends streams with it: connect again.
`

// render writes the page, or tells everything that has no comment.
func render(files []protoreflect.FileDescriptor) ([]byte, error) {
	p := page{shown: make(map[protoreflect.FullName]bool)}
	p.WriteString(head)
	var services []protoreflect.ServiceDescriptor
	var messages []protoreflect.MessageDescriptor
	for _, f := range files {
		for i := range f.Services().Len() {
			services = append(services, f.Services().Get(i))
		}
		for i := range f.Messages().Len() {
			messages = append(messages, f.Messages().Get(i))
		}
	}
	p.contents(services)
	for _, s := range services {
		p.service(s)
	}
	p.WriteString("\n## Messages\n")
	slices.SortFunc(messages, func(a, b protoreflect.MessageDescriptor) int {
		return strings.Compare(string(a.Name()), string(b.Name()))
	})
	for _, m := range messages {
		if !p.shown[m.FullName()] {
			p.message(m)
		}
	}
	for _, f := range files {
		for i := range f.Enums().Len() {
			p.enum(f.Enums().Get(i))
		}
	}
	return []byte(p.String()), errors.Join(p.faults...)
}

type page struct {
	strings.Builder
	shown  map[protoreflect.FullName]bool // messages that stand at their call
	faults []error
}

func (p *page) printf(format string, args ...any) { fmt.Fprintf(&p.Builder, format, args...) }

func (p *page) contents(services []protoreflect.ServiceDescriptor) {
	p.WriteString("\n| service | calls |\n| --- | --- |\n")
	for _, s := range services {
		var calls []string
		for i := range s.Methods().Len() {
			calls = append(calls, string(s.Methods().Get(i).Name()))
		}
		p.printf("| [%s](#%s) | %s |\n", s.Name(), strings.ToLower(string(s.Name())), strings.Join(calls, ", "))
	}
}

func (p *page) service(s protoreflect.ServiceDescriptor) {
	p.printf("\n## %s\n\n%s\n", s.Name(), p.comment(s))
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		stream := ""
		if m.IsStreamingServer() {
			stream = ", a stream of answers"
		}
		p.printf("\n### %s.%s\n\n`/%s/%s`%s\n\n%s\n", s.Name(), m.Name(), s.FullName(), m.Name(), stream, p.comment(m))
		p.part("Asked", m.Input())
		p.part("Answered", m.Output())
	}
}

// part writes a message at its call.
func (p *page) part(title string, m protoreflect.MessageDescriptor) {
	own := strings.HasSuffix(string(m.Name()), "Request") || strings.HasSuffix(string(m.Name()), "Response")
	if !own {
		p.printf("\n%s: %s.\n", title, link(m))
		return
	}
	p.shown[m.FullName()] = true
	p.comment(m)
	if m.Fields().Len() == 0 {
		p.printf("\n%s: nothing.\n", title)
		return
	}
	p.printf("\n%s:\n", title)
	p.fields(m)
}

func (p *page) message(m protoreflect.MessageDescriptor) {
	p.printf("\n### %s\n\n%s\n", m.Name(), p.comment(m))
	p.fields(m)
}

func (p *page) fields(m protoreflect.MessageDescriptor) {
	if m.Fields().Len() > 0 {
		p.WriteString("\n| field | type | |\n| --- | --- | --- |\n")
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		text := strings.ReplaceAll(strings.Join(strings.Fields(p.comment(f)), " "), "|", `\|`)
		p.printf("| `%s` | %s | %s |\n", f.Name(), kind(f), text)
	}
}

func (p *page) enum(e protoreflect.EnumDescriptor) {
	p.printf("\n### %s\n\n%s\n\n| value | |\n| --- | --- |\n", e.Name(), p.comment(e))
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		p.printf("| `%s` | %s |\n", v.Name(), strings.Join(strings.Fields(p.comment(v)), " "))
	}
}

// kind is a field's type in words.
func kind(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch f.Kind() {
	case protoreflect.MessageKind:
		name = link(f.Message())
	case protoreflect.EnumKind:
		name = string(f.Enum().Name())
	}
	switch {
	case f.IsMap():
		return "map of " + f.MapKey().Kind().String() + " to " + kind(f.MapValue())
	case f.IsList():
		return "list of " + name
	case f.HasOptionalKeyword():
		return name + ", *optional*"
	}
	return name
}

// link names a message, and leads to where it stands.
func link(m protoreflect.MessageDescriptor) string {
	if strings.HasPrefix(string(m.FullName()), "google.protobuf.") {
		return string(m.Name())
	}
	return fmt.Sprintf("[%s](#%s)", m.Name(), strings.ToLower(string(m.Name())))
}

// comment is what stands above d, or behind it; that there is neither is noted.
func (p *page) comment(d protoreflect.Descriptor) string {
	at := d.ParentFile().SourceLocations().ByDescriptor(d)
	text := strings.TrimSpace(at.LeadingComments)
	if text == "" {
		text = strings.TrimSpace(at.TrailingComments)
	}
	if text == "" {
		p.faults = append(p.faults, fmt.Errorf("%s: %w", d.FullName(), errNoComment))
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.ReplaceAll(strings.Join(lines, "\n"), "\nErrors:", "\n\nErrors:")
}
