package retain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Policy says how much history a group keeps.
type Policy struct {
	// History is how far back the group can be brought. Older checkpoints expire.
	History time.Duration
	// Limit is the most bytes that log, index and scratch may take; 0: what the disk has.
	Limit int64
	// WarnPercent is the part of Limit from which a warning stands.
	WarnPercent int
	// Minimum is the history that is kept even when intake must stop for it; 0: only the
	// newest good checkpoint.
	Minimum time.Duration
	// Tiers say which checkpoints are kept as they grow older; none: all.
	Tiers []Tier
}

// Bounds and defaults of a policy.
const (
	MinHistory  = time.Hour
	MaxHistory  = 30 * day
	WarnPercent = 75

	day  = 24 * time.Hour
	week = 7 * day
)

// Default is the policy of a group for which none was set.
func Default() Policy { return Policy{History: day, WarnPercent: WarnPercent} }

// ErrPolicy says that a policy makes no sense.
var ErrPolicy = errors.New("not a retention policy")

// Validate tells every mistake in p.
func (p Policy) Validate() error {
	var all []error
	bad := func(format string, args ...any) {
		all = append(all, fmt.Errorf(format+": %w", append(args, ErrPolicy)...))
	}
	if p.History < MinHistory || p.History > MaxHistory || p.History%time.Second != 0 {
		bad("history of %s: want %s to %s, in whole seconds", FormatDuration(p.History), FormatDuration(MinHistory), FormatDuration(MaxHistory))
	}
	if p.Limit < 0 {
		bad("limit of %d: want none, or a number of bytes", p.Limit)
	}
	if p.WarnPercent < 1 || p.WarnPercent > 100 {
		bad("warning at %d %% of the limit: want 1 to 100", p.WarnPercent)
	}
	if p.Minimum < 0 || p.Minimum > p.History || p.Minimum%time.Second != 0 {
		bad("minimum of %s: want at most the history, in whole seconds", FormatDuration(p.Minimum))
	}
	return errors.Join(append(all, validateTiers(p.Tiers))...)
}

// Equal says whether both say the same.
func (p Policy) Equal(q Policy) bool {
	return string(p.AppendTo(nil)) == string(q.AppendTo(nil))
}

// The encoding of a policy; see FORMAT.md.
const (
	policyVersion = 1
	policyBytes   = 20 // without tiers
	tierBytes     = 8

	atPolicyVersion = 0
	atPolicyWarn    = 1
	atPolicyTiers   = 2
	atPolicyZero    = 3
	atPolicyHistory = 4
	atPolicyMinimum = 8
	atPolicyLimit   = 12
)

var _ [policyBytes]byte = [atPolicyLimit + 8]byte{}

var le = binary.LittleEndian

// ErrVersion says that a newer release wrote it.
var ErrVersion = errors.New("written by a newer release")

// AppendTo appends p, which is valid, as it is kept on disk.
func (p Policy) AppendTo(dst []byte) []byte {
	dst = append(dst, policyVersion, byte(p.WarnPercent), byte(len(p.Tiers)), 0)
	dst = le.AppendUint32(dst, uint32(p.History/time.Second))
	dst = le.AppendUint32(dst, uint32(p.Minimum/time.Second))
	dst = le.AppendUint64(dst, uint64(p.Limit))
	for _, t := range p.Tiers {
		dst = le.AppendUint32(dst, uint32(t.Every/time.Second))
		dst = le.AppendUint32(dst, uint32(t.For/time.Second))
	}
	return dst
}

// ParsePolicy takes what AppendTo wrote. ErrVersion: a newer release did.
func ParsePolicy(b []byte) (Policy, error) {
	if len(b) == 0 || b[atPolicyVersion] == 0 {
		return Policy{}, fmt.Errorf("%d bytes: %w", len(b), ErrPolicy)
	}
	if b[atPolicyVersion] != policyVersion {
		return Policy{}, fmt.Errorf("policy of version %d: %w", b[atPolicyVersion], ErrVersion)
	}
	if len(b) < policyBytes || len(b) != policyBytes+int(b[atPolicyTiers])*tierBytes || b[atPolicyZero] != 0 {
		return Policy{}, fmt.Errorf("%d bytes: %w", len(b), ErrPolicy)
	}
	p := Policy{
		History:     seconds(b[atPolicyHistory:]),
		Minimum:     seconds(b[atPolicyMinimum:]),
		Limit:       int64(le.Uint64(b[atPolicyLimit:])),
		WarnPercent: int(b[atPolicyWarn]),
	}
	for t := b[policyBytes:]; len(t) > 0; t = t[tierBytes:] {
		p.Tiers = append(p.Tiers, Tier{Every: seconds(t), For: seconds(t[4:])})
	}
	if err := p.Validate(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

func seconds(b []byte) time.Duration { return time.Duration(le.Uint32(b)) * time.Second }
