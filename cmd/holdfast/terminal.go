package main

import (
	"io"
	"os"
	"syscall"
	"unicode/utf8"
	"unsafe"
)

// isTerminal asks the kernel whether w is one.
func isTerminal(w io.Writer) bool {
	var t syscall.Termios
	return ioctl(w, syscall.TCGETS, unsafe.Pointer(&t))
}

// terminalSize is how many columns and lines a terminal has; 0 when it is not known.
func terminalSize(w io.Writer) (columns, lines int) {
	var size struct{ lines, columns, x, y uint16 }
	if !ioctl(w, syscall.TIOCGWINSZ, unsafe.Pointer(&size)) {
		return 0, 0
	}
	return int(size.columns), int(size.lines)
}

func ioctl(w io.Writer, request uintptr, to unsafe.Pointer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(to))
	return errno == 0
}

// cut shortens a line so that it does not wrap in so many columns; 0 is no limit.
func cut(line string, columns int) string {
	if columns <= 0 || utf8.RuneCountInString(line) < columns {
		return line
	}
	return string([]rune(line)[:columns-1])
}
