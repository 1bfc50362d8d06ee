package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds of a page of a list: how many there are in it when nobody says, at the most, and how many bytes they take.
const (
	PageDefault = 1000
	PageMost    = 10000
	pageBytes   = 4 << 20
)

// Page is the part of a list that a request asks for by its page_size and page_token, and the token of the next one; empty: there is none. The
// list is sorted by key, which no two have in common; it may change between two pages.
func Page[T proto.Message](all []T, size int32, token string, key func(T) string) (page []T, next string) {
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	if token != "" {
		after, found := slices.BinarySearchFunc(all, token, func(m T, token string) int { return strings.Compare(key(m), token) })
		if found {
			after++
		}
		all = all[after:]
	}
	if size <= 0 {
		size = PageDefault
	}
	most, bytes, n := min(int(size), PageMost), 0, 0
	for n < len(all) && n < most {
		if bytes += proto.Size(all[n]); bytes > pageBytes && n > 0 && !invariant.Planted("api/long-pages") {
			break
		}
		n++
	}
	if n == len(all) {
		return all, ""
	}
	return all[:n], key(all[n-1])
}

// All makes a call that answers by pages, such as a client's Views.List, until there are no more, and returns one answer with
// what stands in all of them; what else they say is that of the last. A list that changes meanwhile may be told half before and half after.
func All[Request, Response proto.Message](ctx context.Context, r Request, call func(context.Context, Request) (Response, error)) (all Response, err error) {
	r = proto.CloneOf(r)
	tokenOf := func(m proto.Message, name protoreflect.Name) (text string, set func(string)) {
		f := m.ProtoReflect().Descriptor().Fields().ByName(name)
		return m.ProtoReflect().Get(f).String(), func(s string) { m.ProtoReflect().Set(f, protoreflect.ValueOfString(s)) }
	}
	token, ask := tokenOf(r, "page_token")
	for first := true; ; first = false {
		res, err := call(ctx, r)
		if err != nil {
			return res, err
		}
		next, forget := tokenOf(res, "next_page_token")
		forget("")
		if first {
			all = res
		} else {
			proto.Merge(all, res)
		}
		if next == "" {
			return all, nil
		}
		if next == token {
			return all, Errorf(Internal, "", "the page after %.100q is that page again", token)
		}
		token = next
		ask(token)
	}
}
