// Package recovery decides how a group of machines is brought up at a checkpoint, and how that
// ends: what is done in which order, what a failure or a user's word leads to, and what a job that
// was killed goes on with. It is pure: time is passed in, and package failover carries out.
//
// A job is a Plan, made once, and the State that its events lead to. Its events are kept in a
// file, each synced before what follows from it is done, so that whoever reads them again
// knows the same state. A step that was begun and of which no end is known is carried out again:
// each of them may be.
//
//	Starting ──did all──► Running ──stop, commit, rollback──► Ending ──did all──► Over
//	    └──────── failed, cancelled ─────────────────────────►  │ ▲
//	                                                     failed ▼ │ resume
//	                                                        (halted)
//
// A reversal, and a move onto plain disks, have no way back: what fails there halts it where it is, and it is carried on.
//
// What every reader may rely on:
//   - A job ends as if nothing had been (no machine, no view, the source's epoch granted again), or, a live one, committed.
//   - No machine of a live failover is started before the source is fenced (Begin), and none runs when that is taken back.
//   - A test never stops a source, never raises an epoch, and its machines are isolated.
package recovery
