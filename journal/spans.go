package journal

import "slices"

// span is the numbers of checkpoints strictly between two that stayed.
type span struct{ lo, hi uint64 }

func (s span) holds(number uint64) bool { return s.lo < number && number < s.hi }

// spans are ordered, and no two of them hold neighbouring numbers.
type spans []span

// add returns ss with s in it. It is pure, and ss is not changed.
func (ss spans) add(s span) spans {
	out := make(spans, 0, len(ss)+1)
	at := 0
	for _, have := range ss {
		switch {
		case have.hi <= s.lo: // have.hi itself is in neither
			out = append(out, have)
			at = len(out)
		case s.hi <= have.lo:
			out = append(out, have)
		default:
			s = span{min(s.lo, have.lo), max(s.hi, have.hi)}
		}
	}
	return slices.Insert(out, at, s)
}

// holds says whether the number lies in any of them.
func (ss spans) holds(number uint64) bool {
	i, _ := slices.BinarySearchFunc(ss, number, func(s span, n uint64) int {
		if s.hi <= n {
			return -1
		}
		return 1
	})
	return i < len(ss) && ss[i].holds(number)
}

// above returns what ss holds at number and beyond, not less.
func (ss spans) above(number uint64) spans {
	for len(ss) > 0 && ss[0].hi <= number {
		ss = ss[1:]
	}
	return ss
}
