package corrosion

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Statement is one SQL statement. Params are for its ?, in order; each is nil,
// int64, int, uint16, bool, float64, string or []byte. A bool becomes 1 or 0, a
// []byte a BLOB even if it is nil.
type Statement struct {
	SQL    string
	Params []any
}

// SQL returns a Statement.
func SQL(text string, params ...any) Statement { return Statement{text, params} }

// appendStatement appends s in the verbose form, the only one that cannot be
// taken for another. It fails for what would not arrive as it is.
func appendStatement(b []byte, s Statement) ([]byte, error) {
	b, err := appendText(append(b, `{"query":`...), s.SQL)
	if err != nil {
		return nil, fmt.Errorf("statement %q: %w", clip(s.SQL, 80), err)
	}
	b = append(b, `,"params":[`...)
	for i, v := range s.Params {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v); err != nil {
			return nil, fmt.Errorf("parameter %d of %q: %w", i+1, clip(s.SQL, 80), err)
		}
	}
	return append(b, "]}"...), nil
}

func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case uint16:
		return strconv.AppendInt(b, int64(v), 10), nil
	case bool:
		if v {
			return append(b, '1'), nil
		}
		return append(b, '0'), nil
	case float64:
		return appendReal(b, v)
	case string:
		return appendText(b, v)
	case []byte:
		b = append(b, '[') // a JSON string would be stored as TEXT
		for i, c := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendUint(b, uint64(c), 10)
		}
		return append(b, ']'), nil
	}
	return nil, fmt.Errorf("is a %T: want nil, int64, int, uint16, bool, float64, string or []byte", v)
}

// appendReal writes a point or an exponent always, for 1 is an INTEGER.
func appendReal(b []byte, v float64) ([]byte, error) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil, fmt.Errorf("is %v: want a finite number", v)
	}
	text := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return append(b, text...), nil
}

// appendText refuses what encoding/json would silently change.
func appendText(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("text %q is not UTF-8", clip(s, 80))
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return append(b, text...), nil
}
