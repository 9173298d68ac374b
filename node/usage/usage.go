// Package usage marks errors that what the user typed or configured is to blame
// for, not the machine or the network: commands exit with 2 for them, not 1.
package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
)

// An Error is one that the input is to blame for.
type Error struct{ Err error }

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error that was marked.
func (e *Error) Unwrap() error { return e.Err }

// Errorf is fmt.Errorf, marked.
func Errorf(format string, args ...any) error { return &Error{fmt.Errorf(format, args...)} }

// refusals are the machine's, whatever it was asked for.
var refusals = []error{syscall.EDQUOT, syscall.EIO, syscall.ENOSPC, syscall.EROFS, fs.ErrPermission}

// Mark marks err, unless it is a refusal of the machine, such as a full disk.
// It returns nil for nil.
func Mark(err error) error {
	if err == nil || slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
		return err
	}
	return &Error{err}
}

// Is reports whether err, or what it wraps, is marked.
func Is(err error) bool {
	var e *Error
	return errors.As(err, &e)
}
