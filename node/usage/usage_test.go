package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestMark(t *testing.T) {
	wrong := errors.New("no such server")
	for _, tc := range []struct {
		err    error
		marked bool
	}{
		{nil, false},
		{wrong, true},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, true},
		{fmt.Errorf("store key: %w", &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}), false},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, false},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EROFS}, false},
		{fmt.Errorf("add: %w", Errorf("line %d", 3)), true},
	} {
		err := Mark(tc.err)
		if Is(err) != tc.marked || !errors.Is(err, tc.err) {
			t.Errorf("Mark(%v) = %#v, marked %v, want %v", tc.err, err, Is(err), tc.marked)
		}
	}
}
