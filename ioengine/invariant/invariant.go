// Package invariant holds the switches that only test builds have.
//
// Tag invariants turns on assertions too dear for production (Enabled). Tag
// planted lets HOLDFAST_PLANTED switch on one known bug by its name, so that the
// tests can be seen to find it: a test that stays green then proves nothing.
package invariant
