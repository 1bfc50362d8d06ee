// Package nbd offers a front.Device to guests and tools over the NBD protocol
// (fixed newstyle), and is the client of it that our own programs use.
//
// What the server speaks: EXPORT_NAME, GO, INFO, LIST, ABORT, structured replies
// when asked for (simple ones otherwise), base:allocation, FUA, flush, trim,
// write-zeroes, several connections per export, several exports per socket, unix
// and TCP. FAST_ZERO is understood and always answered "not supported", since a
// device does not say whether its zeroing is fast. There is no TLS here: a socket
// is reached through its folder's permissions, or through a private network.
//
// What a caller may rely on:
//   - The payload of a write goes from the socket into the buffers that
//     Device.BeginWrite lends, and every Write is ended exactly once, whatever the
//     client does.
//   - The device sees only ranges inside [0, Size()), and writes of 1 to
//     front.MaxWrite bytes.
//   - A flush is begun after every request answered before it, on any connection.
//   - Memory, goroutines and connections are bounded whatever a client sends or
//     fails to read: see limits.go for the sum.
//   - After Remove or Serve returns, no device call of that export (of that
//     listener) is running or will follow.
//
// How a connection runs: a device with lanes (front.Laned) serves it by one goroutine, which has the
// socket and an io_uring to itself (laned.go): it takes in all that the socket holds, starts it, and sends
// the answers of all that has ended, each by one system call for many. A request that is alone it carries out
// itself, and between such it waits in the socket's own call, so that a lone request costs three
// system calls and no switch. What no lane does (flushes, zeroing, FUA, what is not aligned) goes to workers.
//
// Without lanes, or where the system offers no io_uring, one goroutine at a time is its reader. It takes a request
// in, and if that is alone carries it out itself. Otherwise it passes the
// reader's place to another worker first. Whoever
// finishes a request queues its reply; the first to find nobody writing writes for
// all. In steady state nothing is allocated.
//
// A device without lanes that waits in system calls holds one of GOMAXPROCS processors for each
// until the scheduler notices. A process that serves one should have more of them
// than cores: with fio on an O_DIRECT file on 2 busy cores, 4 KiB at depth 32, were seen
// 0.7 of qemu-nbd's rate with 2 of them and 1.7 with 8 (medians of 5 pairs).
package nbd
