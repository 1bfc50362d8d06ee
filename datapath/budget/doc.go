// Package budget shares the memory of a VRA's windows among its groups: who may hold how
// much, and who gives way when it is short. It is pure: what the groups hold is told to a
// Book, time passes with each call, and whoever asks carries out what the answer says.
//
//	total ┬ half of it: floors, one as large as the other; nobody else ever takes them
//	      └ half of it: the pool, for what groups hold above their floors
//
// What a user of a Book may rely on:
//   - A group whose records stay below its floor is always let in: none starves.
//   - Of the pool the lowest priority present takes half at most, the next three quarters,
//     the highest all of it. So a group that goes first finds room at once.
//   - Among equals one that holds more than its share of the pool is not let in while
//     another waits.
//   - When the pool is short all the same, because groups that go first have filled it, the
//     lowest priority gives way, whoever holds most of it first: what it holds is dropped,
//     and sent again from its marks later. Groups of the highest priority present never do,
//     nor one that holds no more than its floor.
//   - What nobody can send, since the filters of its guests are away, gives way before that, to any group that is short.
//   - Who gave way is held to its floor for Rest: a short burst costs it one resync, not many.
//   - All that groups hold is at most the total, and what each has under way when it is
//     last let in.
//
// A Book is not safe for concurrent use. Room looks at every group and allocates nothing.
package budget
