// Package faultlink is the link of the tests: slow, far, cut, silent or lying, by
// a script or from a seed.
//
// It has two forms. Net is a network in memory, for tests in one process and under
// testing/synctest. Relay is a TCP relay between real processes with one rate for
// all it carries each way. Both take the same Faults for each connection.
//
// A relay's rate counts the bytes of the TCP streams. It is exact over time: what a
// late timer missed is made up for, up to 100 ms of it. Connections share a
// direction a quantum each in turn (2 ms of the rate, 512 B to 16 KiB), so one that
// is full delays another by that much for each that is full.
package faultlink
