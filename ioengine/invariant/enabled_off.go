//go:build !invariants

package invariant

// Enabled says that expensive assertions are built in.
const Enabled = false
