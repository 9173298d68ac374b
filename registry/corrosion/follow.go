package corrosion

import (
	"context"
	"errors"
	"fmt"
)

// A Kind is what happened to a row.
type Kind int

// The kinds of a Change. Zero is none.
const (
	Insert Kind = iota + 1
	Update
	Delete
)

func (k Kind) String() string {
	switch k {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// A View is told what a subscription delivers. All its methods are called from
// the goroutine of Follow, and return soon: the agent drops a reader who is
// slow. The slices are used again for the next row, what their cells hold is not.
//
// What arrives is (Begin Row* End Change*)*, broken anywhere by Lost. After that
// comes Begin, and then all rows again, or Resumed, or another Lost.
type View interface {
	// Begin says that a complete result follows. What an unfinished one
	// delivered is void; the last complete one holds until End.
	Begin()

	// Row is a row of the result. Rows may come in any order.
	Row(cells []any)

	// End says that the result since Begin is complete.
	End()

	// Change is a change since End: the whole row as it is now, or, for Delete,
	// as it last was. The agent joins changes that follow within 0.6 s, so that
	// a row that comes and goes is never seen.
	Change(kind Kind, cells []any)

	// Lost says that the stream ended or cannot be had. What was delivered
	// stays and may be old, until End or Resumed. It is called once for each
	// failure, with the latest reason.
	Lost(err error)

	// Resumed says that the stream goes on where it was and nothing was missed;
	// what changed meanwhile follows as Changes.
	Resumed()
}

// Follow subscribes to s and tells v, for ever: after any failure it tries
// again, within 0.1 to 5 s. It returns nil soon after ctx is done, and v hears
// nothing after that. Its error says that s cannot be sent at all.
func (c *Client) Follow(ctx context.Context, s Statement, v View) error {
	return errors.ErrUnsupported
}
