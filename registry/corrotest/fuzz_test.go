package corrotest

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzStatements: a body is refused, or holds statements whose values can be
// written again as they came.
func FuzzStatements(f *testing.F) {
	for _, s := range []string{`["SELECT 1"]`, `[["SELECT ?",[1,1.5,"x",null,true,[1,255],18446744073709551615]]]`, `[{"query":"x","named_params":{":a":1}}]`, `[`, ``, `{"a":`, `[["x",{"a":{}}]]`, `5`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if s, err := parseOne(body); err == nil {
			for _, v := range s.args {
				b, err := appendValue(nil, v)
				if err != nil {
					t.Fatalf("write %v: %v", v, err)
				}
				again, ok := parseValue(b)
				if !ok || !bytes.Equal(pack([]value{v}), pack([]value{again})) {
					t.Errorf("%v (%T) is written %s, read as %v", v, v, b, again)
				}
			}
		}
		if _, err := parseStatements(body); err == nil && !json.Valid(body) {
			t.Errorf("%q is no JSON and was accepted", body)
		}
	})
}

// FuzzSelection: whatever SQL is subscribed to, there is a selection or an
// error.
func FuzzSelection(f *testing.F) {
	for _, s := range []string{names, "SELECT a.name n FROM services AS a LEFT OUTER JOIN containers c ON c.id = a.name, (SELECT 1) WHERE 1 ORDER BY 1", `SELECT "`, "SELECT * FROM", "SELECT FROM [", "/*", "--", ")(", "SELECT 'x''y' FROM \"services\" x;"} {
		f.Add(s)
	}
	tables, _, err := readSchema(readSchemaFile(f))
	if err != nil {
		f.Fatal(err)
	}
	schema := map[string]*table{}
	for _, t := range tables {
		schema[t.name] = t
	}
	f.Fuzz(func(t *testing.T, sql string) {
		sel, err := newSelection(sql, schema)
		if (sel == nil) == (err == nil) {
			t.Errorf("selection %v and error %v", sel, err)
		}
	})
}
