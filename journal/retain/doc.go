// Package retain decides how long a group's history is kept: which checkpoints
// expire, to which checkpoint the replica is brought, which checkpoints are thinned
// out, and what gives way when space runs out. It is pure: the journal tells it how
// things stand and does what it says.
//
// What a caller may rely on:
//   - No plan passes a pinned checkpoint, an open view, the promotion limit, the last
//     good checkpoint, or the minimum that is set.
//   - A plan only ever moves on: what one plan has put below the history's beginning no
//     later one brings back, and carrying plans out ends after finitely many, with the
//     bytes below the limit or nothing left that may give way.
//   - Under pressure what is over age goes first, then test views give way, then
//     history shortens from the oldest, a sixteenth at a time; when all that is left is
//     the minimum, intake stops and says what holds the space.
//
// # Age
//
// A checkpoint's age is the time that has certainly passed here since it was listed
// here. Labels that a source wrote count for nothing, so a source cannot expire
// anything, and neither can a clock:
//
//   - Clock adds up steps. A step counts the time that passed by the wall clock or by
//     the monotonic one, whichever is less, and never less than nothing. A wall clock
//     that jumps, forth or back, a machine that is suspended or brought back from a
//     snapshot can only make a step count for less.
//   - The clock is kept on disk. Between two runs of one boot the monotonic clock goes
//     on, and the time between counts by the same rule. After another boot, or where
//     the boot is not known, the time between counts for nothing: nobody can say how
//     much it was. The history then holds more than is asked, never less.
//   - Ages keeps for which checkpoint was the newest at which times. A checkpoint is
//     dated by the first such mark at or above it, so by a time not before it was
//     listed. Leaving a mark out, losing the file, or taking an older one makes
//     checkpoints younger, never older.
//
// Ages costs 16 bytes a mark: for 30 days of checkpoints each five seconds 2500 marks
// without tiers, and with tiers up to three for each checkpoint that they keep.
package retain
