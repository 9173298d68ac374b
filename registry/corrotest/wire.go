package corrotest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A statement is one SQL statement as a client sends it.
type statement struct {
	sql   string
	args  []value      // positional parameters
	named []namedValue // named parameters, in the order of the body; only if args is nil
}

type namedValue struct {
	name  string // as sent: with its colon, if it is to match
	value value
}

// A bodyError is a body that was refused before anything was run.
type bodyError struct {
	status int
	text   string
}

func (e *bodyError) Error() string { return e.text }

func wrongShape(format string, args ...any) error {
	return &bodyError{422, "Failed to deserialize the JSON body into the target type: " + fmt.Sprintf(format, args...)}
}

// checkJSON returns the agent's complaint about a body that is no JSON.
func checkJSON(body []byte) error {
	if json.Valid(body) {
		return nil
	}
	line, column := position(body, len(body))
	what := "expected value"
	var syntax *json.SyntaxError
	d := json.NewDecoder(bytes.NewReader(body))
	var depth []byte
	for {
		t, err := d.Token()
		if err == nil {
			switch t {
			case json.Delim('['), json.Delim('{'):
				depth = append(depth, byte(t.(json.Delim)))
			case json.Delim(']'), json.Delim('}'):
				depth = depth[:len(depth)-1]
			}
			continue
		}
		if errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF) && int(syntax.Offset) < len(body) {
			line, column = position(body, int(syntax.Offset))
			break
		}
		what = "EOF while parsing a value"
		if len(depth) > 0 {
			what = map[byte]string{'[': "EOF while parsing a list", '{': "EOF while parsing an object"}[depth[len(depth)-1]]
		}
		break
	}
	return &bodyError{400, fmt.Sprintf("Failed to parse the request body as JSON: %s at line %d column %d", what, line, column)}
}

func position(body []byte, offset int) (line, column int) {
	before := body[:offset]
	return 1 + bytes.Count(before, []byte("\n")), len(before) - (bytes.LastIndexByte(before, '\n') + 1)
}

// parseStatements parses the body of /v1/transactions.
func parseStatements(body []byte) ([]statement, error) {
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	if kind := describe(body); kind != "" {
		line, column := position(body, 0)
		return nil, wrongShape("invalid type: %s, expected a sequence at line %d column %d", kind, line, column)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	statements := []statement{}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		s, ok := parseStatement(raw)
		if !ok {
			line, column := position(body, int(d.InputOffset()))
			return nil, wrongShape("[%d]: data did not match any variant of untagged enum Statement at line %d column %d", len(statements), line, column+1)
		}
		statements = append(statements, s)
	}
	return statements, nil
}

// describe names the kind of a JSON text as serde does; "" for an array.
func describe(body []byte) string {
	switch t := bytes.TrimSpace(body); t[0] {
	case '[':
		return ""
	case '{':
		return "map"
	case '"':
		return "string " + string(t)
	case 'n':
		return "null"
	case 't', 'f':
		return "boolean `" + string(t) + "`"
	default:
		return "integer `" + string(t) + "`"
	}
}

// parseOne parses the body of /v1/queries and /v1/subscriptions.
func parseOne(body []byte) (statement, error) {
	if err := checkJSON(body); err != nil {
		return statement{}, err
	}
	s, ok := parseStatement(body)
	if !ok {
		return statement{}, wrongShape("data did not match any variant of untagged enum Statement")
	}
	return s, nil
}

func parseStatement(raw []byte) (statement, bool) {
	raw = bytes.TrimSpace(raw)
	var s statement
	switch raw[0] {
	case '"':
		return s, json.Unmarshal(raw, &s.sql) == nil
	case '[':
		var parts []json.RawMessage
		if json.Unmarshal(raw, &parts) != nil || len(parts) != 2 || json.Unmarshal(parts[0], &s.sql) != nil || parts[0][0] != '"' {
			return s, false
		}
		var ok bool
		switch parts[1][0] {
		case '[':
			s.args, ok = parseArgs(parts[1])
		case '{':
			s.named, ok = parseNamed(parts[1])
		}
		return s, ok
	case '{':
		var v struct {
			Query  *string         `json:"query"`
			Params json.RawMessage `json:"params"`
			Named  json.RawMessage `json:"named_params"`
		}
		if json.Unmarshal(raw, &v) != nil || v.Query == nil {
			return s, false
		}
		s.sql = *v.Query
		ok := true
		if len(v.Params) > 0 && v.Params[0] != 'n' {
			if s.args, ok = parseArgs(v.Params); !ok {
				return s, false
			}
		}
		if len(v.Named) > 0 && v.Named[0] != 'n' {
			named, ok := parseNamed(v.Named)
			if !ok {
				return s, false
			}
			if s.args == nil {
				s.named = named
			}
		}
		return s, true
	}
	return s, false
}

func parseArgs(raw []byte) ([]value, bool) {
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return nil, false
	}
	args := make([]value, len(parts))
	for i, p := range parts {
		var ok bool
		if args[i], ok = parseValue(p); !ok {
			return nil, false
		}
	}
	return args, true
}

func parseNamed(raw []byte) ([]namedValue, bool) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	named := []namedValue{}
	for d.More() {
		t, err := d.Token()
		name, isString := t.(string)
		var p json.RawMessage
		if err != nil || !isString || d.Decode(&p) != nil {
			return nil, false
		}
		v, ok := parseValue(p)
		if !ok {
			return nil, false
		}
		named = append(named, namedValue{name, v})
	}
	return named, true
}

// parseValue parses a parameter. Objects are announced but refused.
func parseValue(raw []byte) (value, bool) {
	switch raw[0] {
	case 'n':
		return nil, true
	case 't':
		return int64(1), true
	case 'f':
		return int64(0), true
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	case '[':
		var numbers []json.Number
		if json.Unmarshal(raw, &numbers) != nil {
			return nil, false
		}
		blob := make([]byte, len(numbers))
		for i, n := range numbers {
			b, err := strconv.ParseUint(n.String(), 10, 8)
			if err != nil {
				return nil, false
			}
			blob[i] = byte(b)
		}
		return blob, true
	case '{':
		return nil, false
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	return f, err == nil
}

var errNotUTF8 = errors.New("text is not UTF-8")

// appendValue appends v as the agent writes it.
func appendValue(b []byte, v value) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case float64:
		return appendFloat(b, v), nil
	case []byte:
		b = append(b, '[')
		for i, c := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendUint(b, uint64(c), 10)
		}
		return append(b, ']'), nil
	case string:
		if !utf8.ValidString(v) {
			return b, errNotUTF8
		}
		return appendString(b, v), nil
	}
	return b, fmt.Errorf("a %T is no SQLite value", v)
}

func appendValues(b []byte, row []value) ([]byte, error) {
	b = append(b, '[')
	for i, v := range row {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendValue(b, v); err != nil {
			return b, err
		}
	}
	return append(b, ']'), nil
}

// appendString quotes as serde_json does, which escapes less than encoding/json.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x20:
			b = append(b, c)
		default:
			if short := strings.IndexByte("\b\t\n\f\r", c); short >= 0 {
				b = append(b, '\\', "btnfr"[short])
			} else {
				b = fmt.Appendf(b, `\u%04x`, c)
			}
		}
	}
	return append(b, '"')
}

// appendFloat writes the shortest digits, and always a point or an exponent, so
// that a REAL is never taken for an INTEGER (ryu's "pretty" form).
func appendFloat(b []byte, f float64) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, "null"...)
	}
	if f == 0 {
		if math.Signbit(f) {
			b = append(b, '-')
		}
		return append(b, "0.0"...)
	}
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	point, _ := strconv.Atoi(exponent)
	point++ // where the point stands in the digits
	switch {
	case point > 16 || point <= -5:
		b = append(b, mantissa...)
		b = append(b, 'e')
		return strconv.AppendInt(b, int64(point-1), 10)
	default:
		b = strconv.AppendFloat(b, f, 'f', -1, 64)
		if f == math.Trunc(f) {
			b = append(b, ".0"...)
		}
		return b
	}
}

// Events are lines of a stream.

func columnsEvent(names []string) []byte {
	b := []byte(`{"columns":[`)
	for i, n := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, n)
	}
	return append(b, "]}\n"...)
}

func rowEvent(rowid int64, row []value) ([]byte, error) {
	b, err := appendValues(fmt.Appendf(nil, `{"row":[%d,`, rowid), row)
	return append(b, "]}\n"...), err
}

func changeEvent(kind string, rowid int64, row []value, id int64) ([]byte, error) {
	b, err := appendValues(fmt.Appendf(nil, `{"change":[%q,%d,`, kind, rowid), row)
	return fmt.Appendf(b, ",%d]}\n", id), err
}

func notifyEvent(kind string, key []value) ([]byte, error) {
	b, err := appendValues(fmt.Appendf(nil, `{"notify":[%q,`, kind), key)
	return append(b, "]}\n"...), err
}

func errorEvent(text string) []byte {
	return append(appendString([]byte(`{"error":`), text), "}\n"...)
}

// eoqEvent ends the rows; a query has no change ID.
func eoqEvent(changeID *int64) []byte {
	b := appendFloat([]byte(`{"eoq":{"time":`), 4e-8)
	if changeID != nil {
		b = fmt.Appendf(b, `,"change_id":%d`, *changeID)
	}
	return append(b, "}}\n"...)
}

// compareValues orders as SQLite does: NULL, numbers, TEXT, BLOB.
func compareValues(a, b value) int {
	if ra, rb := sortRank(a), sortRank(b); ra != rb {
		return ra - rb
	}
	return compareSameKind(a, b)
}

func sortRank(v value) int {
	switch v.(type) {
	case nil:
		return 0
	case int64, float64:
		return 1
	case string:
		return 2
	}
	return 3
}

// compareSameKind compares two numbers, two texts or two blobs.
func compareSameKind(a, b value) int {
	switch a := a.(type) {
	case nil:
		return 0
	case string:
		return strings.Compare(a, b.(string))
	case []byte:
		return bytes.Compare(a, b.([]byte))
	}
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			return compareOrdered(x, y)
		}
	}
	return compareOrdered(number(a), number(b))
}

func number(v value) float64 {
	if n, ok := v.(int64); ok {
		return float64(n)
	}
	return v.(float64)
}

func compareOrdered[T int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// pack packs a key as cr-sqlite does: the count of columns, then for each one
// byte with the type in the lower three bits and, above them, how many bytes
// the number or the length takes; then these bytes, big-endian.
func pack(key []value) []byte {
	b := []byte{byte(len(key))}
	for _, v := range key {
		switch v := v.(type) {
		case int64:
			b = appendPacked(b, packedInteger, uint64(v))
		case float64:
			b = append(b, packedFloat)
			bits := math.Float64bits(v)
			for shift := 56; shift >= 0; shift -= 8 {
				b = append(b, byte(bits>>shift))
			}
		case string:
			b = append(appendPacked(b, packedText, uint64(len(v))), v...)
		case []byte:
			b = append(appendPacked(b, packedBlob, uint64(len(v))), v...)
		default:
			b = append(b, packedNull)
		}
	}
	return b
}

const (
	packedInteger = 1
	packedFloat   = 2
	packedText    = 3
	packedBlob    = 4
	packedNull    = 5
)

func appendPacked(b []byte, kind byte, n uint64) []byte {
	size := 0
	for rest := n; rest != 0; rest >>= 8 {
		size++
	}
	b = append(b, byte(size)<<3|kind)
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}
