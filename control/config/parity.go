package config

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parity is none, local, or k+m: K data shards and M of parity; with a K of 1 all are copies.
type Parity struct {
	Local bool
	K, M  int // 0: none
}

// The most shards that a stripe may have.
const (
	MaxDataShards   = 64
	MaxParityShards = 16
)

func (p Parity) String() string {
	switch {
	case p.Local:
		return "local"
	case p.M == 0:
		return "none"
	}
	return fmt.Sprintf("%d+%d", p.K, p.M)
}

// IsZero leaves none out of a file.
func (p Parity) IsZero() bool { return p == Parity{} }

// MarshalYAML writes the text that UnmarshalYAML reads.
func (p Parity) MarshalYAML() (any, error) { return p.String(), nil }

// UnmarshalYAML reads none, local, or k+m.
func (p *Parity) UnmarshalYAML(n *yaml.Node) error { return scalar(n, p, ParseParity) }

// ParseParity reads none, local, or k+m.
func ParseParity(text string) (Parity, error) {
	switch text {
	case "none", "":
		return Parity{}, nil
	case "local":
		return Parity{Local: true}, nil
	}
	left, right, ok := strings.Cut(text, "+")
	k, kerr := strconv.Atoi(left)
	m, merr := strconv.Atoi(right)
	if !ok || kerr != nil || merr != nil || k < 1 || k > MaxDataShards || m < 1 || m > MaxParityShards {
		return Parity{}, fmt.Errorf("%q: want none, local, or k+m as in 4+2 (k at most %d, m at most %d)", text, MaxDataShards, MaxParityShards)
	}
	return Parity{K: k, M: m}, nil
}

// validateStores checks the folders against the parity.
func (t *Target) validateStores(m *mistakes) {
	if len(t.Stores) == 0 {
		m.path("target.store", t.Store)
		if t.Parity.M > 0 {
			m.add("target.parity", "%s is over several stores: name them in target.stores", t.Parity)
		}
		return
	}
	if t.Store != "" {
		m.add("target.store", "is one folder, and target.stores are several: use one of the two")
	}
	seen := map[string]bool{}
	for i, s := range t.Stores {
		where := fmt.Sprintf("target.stores[%d]", i)
		m.path(where, s)
		if seen[s] {
			m.add(where, "%s is named twice", s)
		}
		seen[s] = true
	}
	need := t.Parity.K + t.Parity.M
	switch {
	case t.Parity.M == 0:
		m.add("target.parity", "%s is for one folder: with target.stores it is k+m, as in 1+1 for a copy on each of two", t.Parity)
	case len(seen) < need:
		m.add("target.stores", "%s needs %d folders, and there are %d", t.Parity, need, len(seen))
	}
}
