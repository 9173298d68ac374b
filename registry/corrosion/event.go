package corrosion

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// An eventType is what a line of a stream says.
type eventType int

const (
	eventUnknown eventType = iota // of a later agent: to be ignored
	eventColumns
	eventRow
	eventEnd
	eventChange
	eventError
)

func (t eventType) String() string {
	return [...]string{"an unknown event", "columns", "a row", "an end of query", "a change", "an error"}[t]
}

// An event is one line of a stream.
type event struct {
	typ     eventType
	columns int    // of eventColumns: how many
	cells   []any  // of eventRow and eventChange; used again for the next event
	kind    Kind   // of eventChange
	id      int64  // of eventChange; of eventEnd, -1 if there was none
	message string // of eventError
}

// A parser reads events. It uses its memory again, but for what cells hold.
// The zero value is ready.
type parser struct {
	b       []byte // the line
	i       int    // of what is next in it
	cells   []any
	scratch []byte
	seed    maphash.Seed
	seen    []any // texts by their hash, see text
}

const (
	maxShared = 64   // bytes of a text that is kept to be used again
	sharers   = 1024 // how many are, a power of two
)

// parse returns the event in line, which is JSON with or without a line end.
// What it accepts it takes as encoding/json would, but for an event that it does
// not know it accepts less: numbers that are no int64, bytes beyond 255, text
// that is not UTF-8.
func (p *parser) parse(line []byte) (event, error) {
	p.b, p.i = line, 0
	ev, err := p.event()
	if err != nil {
		return event{}, fmt.Errorf("line %q: byte %d: %w", clip(string(line[:min(len(line), 200)]), 120), p.i+1, err)
	}
	return ev, nil
}

func (p *parser) event() (event, error) {
	if !p.take('{') {
		return event{}, errors.New("want an event, a JSON object")
	}
	name, err := p.string()
	if err != nil {
		return event{}, err
	}
	if !p.take(':') {
		return event{}, errors.New("want ':'")
	}
	var ev event
	switch string(name) {
	case "row":
		ev, err = p.row()
	case "change":
		ev, err = p.change()
	default:
		return p.rare(string(name))
	}
	if err != nil {
		return event{}, err
	}
	if !p.take('}') {
		return event{}, errors.New("want '}'")
	}
	if p.space(); p.i != len(p.b) {
		return event{}, errors.New("want the end of the line")
	}
	return ev, nil
}

// rare is for the events that come once.
func (p *parser) rare(name string) (event, error) {
	var ev event
	var err error
	switch name {
	case "columns":
		var v struct{ Columns *[]string }
		if err = unmarshal(p.b, &v); err == nil && v.Columns == nil {
			err = errors.New("want an array of names")
		}
		if err == nil {
			ev = event{typ: eventColumns, columns: len(*v.Columns)}
		}
	case "eoq":
		var v struct {
			EOQ *struct {
				ChangeID *int64 `json:"change_id"`
			}
		}
		err = unmarshal(p.b, &v)
		ev = event{typ: eventEnd, id: -1}
		switch {
		case err != nil:
		case v.EOQ == nil:
			err = errors.New("want an object")
		case v.EOQ.ChangeID == nil:
		case *v.EOQ.ChangeID < 0:
			err = fmt.Errorf("change_id %d: want 0 or more", *v.EOQ.ChangeID)
		default:
			ev.id = *v.EOQ.ChangeID
		}
	case "error":
		var v struct{ Error *string }
		if err = unmarshal(p.b, &v); err == nil && v.Error == nil {
			err = errors.New("want a text")
		}
		if err == nil {
			ev = event{typ: eventError, message: *v.Error}
		}
	default:
		if !json.Valid(p.b) {
			err = errors.New("not JSON")
		}
	}
	if err != nil {
		return event{}, err
	}
	return ev, nil
}

func unmarshal(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("text is not UTF-8")
	}
	return json.Unmarshal(b, v)
}

// row reads [rowid, cells]. The row id is the subscription's own, and of no use.
func (p *parser) row() (event, error) {
	if !p.take('[') {
		return event{}, errors.New("want an array of row id and cells")
	}
	if _, err := p.integer(); err != nil {
		return event{}, err
	}
	if !p.take(',') {
		return event{}, errors.New("want ',' and the cells")
	}
	cells, err := p.list()
	if err != nil {
		return event{}, err
	}
	if !p.take(']') {
		return event{}, errors.New("want ']' after the cells")
	}
	return event{typ: eventRow, cells: cells}, nil
}

// change reads [kind, rowid, cells, id].
func (p *parser) change() (event, error) {
	if !p.take('[') {
		return event{}, errors.New("want an array of kind, row id, cells and id")
	}
	ev := event{typ: eventChange}
	name, err := p.string()
	if err != nil {
		return event{}, err
	}
	switch string(name) {
	case "insert":
		ev.kind = Insert
	case "update":
		ev.kind = Update
	case "delete":
		ev.kind = Delete
	default:
		return event{}, fmt.Errorf("kind %q: want insert, update or delete", clip(string(name), 20))
	}
	if !p.take(',') {
		return event{}, errors.New("want ',' and the row id")
	}
	if _, err := p.integer(); err != nil {
		return event{}, err
	}
	if !p.take(',') {
		return event{}, errors.New("want ',' and the cells")
	}
	if ev.cells, err = p.list(); err != nil {
		return event{}, err
	}
	if !p.take(',') {
		return event{}, errors.New("want ',' and the change id")
	}
	if ev.id, err = p.integer(); err != nil {
		return event{}, err
	}
	if ev.id < 1 {
		return event{}, fmt.Errorf("change id %d: want 1 or more", ev.id)
	}
	if !p.take(']') {
		return event{}, errors.New("want ']' after the change id")
	}
	return ev, nil
}

// list reads the cells of one row.
func (p *parser) list() ([]any, error) {
	p.cells = p.cells[:0]
	if !p.take('[') {
		return nil, errors.New("want an array of cells")
	}
	if p.take(']') {
		return p.cells, nil
	}
	for {
		cell, err := p.cell()
		if err != nil {
			return nil, err
		}
		p.cells = append(p.cells, cell)
		switch {
		case p.take(','):
		case p.take(']'):
			return p.cells, nil
		default:
			return nil, errors.New("want ',' or ']' after a cell")
		}
	}
}

func (p *parser) cell() (any, error) {
	p.space()
	if p.i == len(p.b) {
		return nil, errors.New("line ends before a cell")
	}
	switch c := p.b[p.i]; {
	case c == '"':
		s, err := p.string()
		if err != nil {
			return nil, err
		}
		return p.text(s), nil
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	case c == '[':
		return p.bytes()
	case c == 'n' && bytes.HasPrefix(p.b[p.i:], []byte("null")):
		p.i += len("null")
		return nil, nil
	}
	return nil, errors.New("want null, a number, a text or an array of bytes")
}

// text returns s as a string. The few texts that most rows have in common are
// the same string each time: made once, and once in the memory of who keeps it.
func (p *parser) text(s []byte) any {
	if len(s) > maxShared {
		return string(s)
	}
	if p.seen == nil {
		p.seen, p.seed = make([]any, sharers), maphash.MakeSeed()
	}
	at := &p.seen[maphash.Bytes(p.seed, s)%sharers]
	if old, ok := (*at).(string); ok && old == string(s) {
		return *at
	}
	*at = string(s)
	return *at
}

func (p *parser) number() (any, error) {
	text, real, err := p.digits()
	if err != nil {
		return nil, err
	}
	if !real {
		return parseInt(text)
	}
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return nil, fmt.Errorf("number %s: want a double", clip(string(text), 40))
	}
	return v, nil
}

func (p *parser) integer() (int64, error) {
	p.space()
	text, real, err := p.digits()
	if err != nil {
		return 0, err
	}
	if real {
		return 0, fmt.Errorf("number %s: want an integer", clip(string(text), 40))
	}
	return parseInt(text)
}

// digits reads a number as JSON writes it, and whether it has a fraction or an
// exponent, which SQLite's REAL always has.
func (p *parser) digits() (text []byte, real bool, err error) {
	start := p.i
	p.is('-')
	switch {
	case p.is('0'):
	case p.run() == 0:
		return nil, false, errors.New("want a number")
	}
	if p.is('.') {
		real = true
		if p.run() == 0 {
			return nil, false, errors.New("want a digit after the point")
		}
	}
	if p.is('e') || p.is('E') {
		real = true
		_ = p.is('+') || p.is('-')
		if p.run() == 0 {
			return nil, false, errors.New("want a digit in the exponent")
		}
	}
	return p.b[start:p.i], real, nil
}

// run skips decimal digits and returns how many there were.
func (p *parser) run() int {
	start := p.i
	for p.i < len(p.b) && '0' <= p.b[p.i] && p.b[p.i] <= '9' {
		p.i++
	}
	return p.i - start
}

// parseInt reads digits with or without a minus, exactly.
func parseInt(text []byte) (int64, error) {
	digits, limit := text, uint64(math.MaxInt64)
	negative := text[0] == '-'
	if negative {
		digits, limit = text[1:], limit+1
	}
	var n uint64
	for _, c := range digits {
		d := uint64(c - '0')
		if n > (limit-d)/10 {
			return 0, fmt.Errorf("number %s: want one of 64 bits", clip(string(text), 40))
		}
		n = n*10 + d
	}
	if negative {
		return int64(-n), nil
	}
	return int64(n), nil
}

// bytes reads a BLOB.
func (p *parser) bytes() (any, error) {
	p.i++ // '['
	p.scratch = p.scratch[:0]
	if p.take(']') {
		return []byte{}, nil
	}
	for {
		n, err := p.integer()
		if err != nil {
			return nil, err
		}
		if n < 0 || n > math.MaxUint8 {
			return nil, fmt.Errorf("byte %d: want 0 to 255", n)
		}
		p.scratch = append(p.scratch, byte(n))
		switch {
		case p.take(','):
		case p.take(']'):
			return bytes.Clone(p.scratch), nil
		default:
			return nil, errors.New("want ',' or ']' after a byte")
		}
	}
}

// string reads a text. The result is valid until the next line or string.
func (p *parser) string() ([]byte, error) {
	if !p.take('"') {
		return nil, errors.New("want a text")
	}
	start := p.i
	n := bytes.IndexByte(p.b[start:], '"')
	if n < 0 {
		return nil, errors.New("text does not end")
	}
	s := p.b[start : start+n]
	if bytes.IndexByte(s, '\\') >= 0 {
		return p.escaped()
	}
	if err := clean(s); err != nil {
		return nil, err
	}
	p.i = start + n + 1
	return s, nil
}

func clean(s []byte) error {
	for _, c := range s {
		if c < ' ' {
			return fmt.Errorf("character %#x in a text", c)
		}
	}
	if !utf8.Valid(s) {
		return errors.New("text is not UTF-8")
	}
	return nil
}

// escaped reads what follows the quote of a text that has escapes.
func (p *parser) escaped() ([]byte, error) {
	out := p.scratch[:0]
	for {
		rest := p.b[p.i:]
		n := bytes.IndexAny(rest, `"\`)
		if n < 0 {
			return nil, errors.New("text does not end")
		}
		if err := clean(rest[:n]); err != nil {
			return nil, err
		}
		out = append(out, rest[:n]...)
		p.i += n + 1
		if rest[n] == '"' {
			p.scratch = out
			return out, nil
		}
		if p.i == len(p.b) {
			return nil, errors.New("text does not end")
		}
		c := p.b[p.i]
		p.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, err := p.unicode()
			if err != nil {
				return nil, err
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, fmt.Errorf("escape %q in a text", c)
		}
	}
}

// unicode reads what follows \u, and a second escape if it takes two.
func (p *parser) unicode() (rune, error) {
	r, ok := p.hex()
	if ok && utf16.IsSurrogate(r) {
		var low rune
		if ok = bytes.HasPrefix(p.b[p.i:], []byte(`\u`)); ok {
			p.i += 2
			if low, ok = p.hex(); ok {
				r = utf16.DecodeRune(r, low)
				ok = r != utf8.RuneError
			}
		}
	}
	if !ok {
		return 0, errors.New(`want a character after \u`)
	}
	return r, nil
}

func (p *parser) hex() (rune, bool) {
	if len(p.b)-p.i < 4 {
		return 0, false
	}
	var r rune
	for _, c := range p.b[p.i : p.i+4] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	p.i += 4
	return r, true
}

// take skips c and the space before it, if that is what comes next.
func (p *parser) take(c byte) bool {
	p.space()
	return p.is(c)
}

// is skips c if it comes next.
func (p *parser) is(c byte) bool {
	if p.i < len(p.b) && p.b[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\r', '\n':
			p.i++
		default:
			return
		}
	}
}
