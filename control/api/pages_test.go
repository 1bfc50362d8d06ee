package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// listed is a list of groups of these names.
func listed(names ...string) (all []*holdfastv1.Group) {
	for _, name := range names {
		all = append(all, &holdfastv1.Group{Name: name})
	}
	return all
}

func namesOf(all []*holdfastv1.Group) (names []string) {
	for _, g := range all {
		names = append(names, g.Name)
	}
	return names
}

func TestPage(t *testing.T) {
	f := func(all string, size int32, token, want, wantNext string) {
		t.Helper()
		page, next := Page(listed(strings.Fields(all)...), size, token, (*holdfastv1.Group).GetName)
		if got := strings.Join(namesOf(page), " "); got != want || next != wantNext {
			t.Errorf("%d of %q after %q: %q and then %q, want %q and %q", size, all, token, got, next, want, wantNext)
		}
	}
	f("", 0, "", "", "")
	f("c a b", 0, "", "a b c", "")
	f("c a b", 2, "", "a b", "b")
	f("c a b", 2, "b", "c", "")
	f("c a b", 3, "", "a b c", "")
	f("c a b", 1, "c", "", "")
	f("c a", 2, "b", "c", "")         // b is gone meanwhile
	f("c a aa b", 1, "a", "aa", "aa") // one that came
	f("c a b", -1, "", "a b c", "")
	var many []string
	for i := range PageMost + 1 {
		many = append(many, fmt.Sprintf("%05d", i))
	}
	if page, next := Page(listed(many...), 0, "", (*holdfastv1.Group).GetName); len(page) != PageDefault || next != "00999" {
		t.Errorf("%d, and then %s", len(page), next)
	}
	if page, next := Page(listed(many...), PageMost+1, "", (*holdfastv1.Group).GetName); len(page) != PageMost || next != "09999" {
		t.Errorf("%d, and then %s", len(page), next)
	}
	// A page is not long either: what a client takes in is bounded.
	long := listed("a", "b", "c")
	for _, g := range long {
		g.Reason = strings.Repeat("x", pageBytes/2)
	}
	if page, next := Page(long, 0, "", (*holdfastv1.Group).GetName); len(page) != 1 || next != "a" {
		t.Errorf("%d long ones, and then %s", len(page), next)
	}
	long[1].Reason = strings.Repeat("x", 2*pageBytes)
	if page, next := Page(long, 0, "a", (*holdfastv1.Group).GetName); len(page) != 1 || next != "b" {
		t.Errorf("one that is longer than a page: %d, and then %s", len(page), next)
	}
}

// TestAll follows the pages to their end.
func TestAll(t *testing.T) {
	names := strings.Fields("a b c d e f g")
	asked := 0
	r := &holdfastv1.StatusServiceGetRequest{PageSize: 3}
	call := func(_ context.Context, r *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
		asked++
		res := &holdfastv1.StatusServiceGetResponse{Site: fmt.Sprint("page ", asked)}
		res.Groups, res.NextPageToken = Page(listed(names...), r.PageSize, r.PageToken, (*holdfastv1.Group).GetName)
		return res, nil
	}
	all, err := All(t.Context(), r, call)
	if err != nil || !slices.Equal(namesOf(all.GetGroups()), names) || all.NextPageToken != "" || asked != 3 || all.Site != "page 3" || r.PageToken != "" {
		t.Errorf("%v, %v after %d calls; the request is %v", all, err, asked, r)
	}
	broken := errors.New("broken")
	if all, err := All(t.Context(), r, func(ctx context.Context, r *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
		if r.PageToken != "" {
			return nil, broken
		}
		return call(ctx, r)
	}); !errors.Is(err, broken) || len(all.GetGroups()) > 0 {
		t.Errorf("the second page fails: %v, %v", all, err)
	}
	// A server that does not get on is not asked for ever.
	if _, err := All(t.Context(), r, func(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
		return &holdfastv1.StatusServiceGetResponse{NextPageToken: "a"}, nil
	}); AsFailure(err).Code != Internal {
		t.Errorf("the same page again: %v", err)
	}
}
