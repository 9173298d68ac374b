package corrosion

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseCells(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want any
	}{
		{`null`, nil},
		{`0`, int64(0)},
		{`-0`, int64(0)},
		{`1`, int64(1)},
		{`1.0`, 1.0},
		{`1e0`, 1.0},
		{`-1.5E+3`, -1500.0},
		{`1e300`, 1e300},
		{`5e-324`, 5e-324},
		{`9007199254740993`, int64(9007199254740993)}, // 2^53 + 1, which is no float64
		{`9223372036854775807`, int64(math.MaxInt64)},
		{`-9223372036854775808`, int64(math.MinInt64)},
		{`""`, ""},
		{`"a b"`, "a b"},
		{`"ü\"\n\\\/\b\f\r\t"`, "ü\"\n\\/\b\f\r\t"},
		{`"\u00fc\ud83d\ude00\u0000"`, "ü😀\x00"},
		{`"` + strings.Repeat("x", 100_000) + `"`, strings.Repeat("x", 100_000)},
		{`[]`, []byte{}},
		{`[0,255, 7]`, []byte{0, 255, 7}},
		{` [ 1 ] `, []byte{1}},
	} {
		for _, line := range []string{`{"row":[1,[` + tt.in + `]]}`, ` { "row" : [ -7 , [ ` + tt.in + " ] ] } \r\n"} {
			ev, err := new(parser).parse([]byte(line))
			if err != nil || ev.typ != eventRow || !reflect.DeepEqual(ev.cells, []any{tt.want}) {
				t.Errorf("%s: %#v, %v, want %#v", clip(line, 100), ev.cells, err, tt.want)
			}
		}
	}
}

func TestParseEvents(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want event
	}{
		{`{"columns":[]}`, event{typ: eventColumns}},
		{`{"columns":["a","a","count(*)"]}`, event{typ: eventColumns, columns: 3}},
		{`{"row":[1,[]]}`, event{typ: eventRow}},
		{`{"eoq":{"time":5e-8}}`, event{typ: eventEnd, id: -1}},
		{`{"eoq":{"time":5e-8,"change_id":0}}`, event{typ: eventEnd}},
		{`{"eoq":{"later":1,"change_id":9223372036854775807}}`, event{typ: eventEnd, id: math.MaxInt64}},
		{`{"change":["insert",3,["c",null],1]}`, event{typ: eventChange, kind: Insert, cells: []any{"c", nil}, id: 1}},
		{`{"change":["update",3,["c",1.0],9007199254740993]}`, event{typ: eventChange, kind: Update, cells: []any{"c", 1.0}, id: 9007199254740993}},
		{`{"change":["delete",3,["c",[1]],3]}`, event{typ: eventChange, kind: Delete, cells: []any{"c", []byte{1}}, id: 3}},
		{`{"error":"no"}`, event{typ: eventError, message: "no"}},
		{`{"later":[1,{"a":2}]}`, event{}},
	} {
		if ev, err := new(parser).parse([]byte(tt.in + "\n")); err != nil || !reflect.DeepEqual(ev, tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.in, ev, err, tt.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	lines := []string{
		``, "\n", `null`, `[]`, `{}`, `{"row"}`, `{"row":}`, `{"row":null}`, `{"row":[]}`, `{"row":[1]}`, `{"row":[1,[1]}`,
		`{"row":[1,[1]]`, `{"row":[1,[1]]}}`, `{"row":[1,[1]]},`, `{"row":[1,[1]],"x":1}`, `{"row":[1,[1],2]}`, `{"row":[1.0,[1]]}`, `{"row":["1",[1]]}`,
		`{"change":[]}`, `{"change":["insert",1,[1]]}`, `{"change":["upsert",1,[1],1]}`, `{"change":["insert",1,[1],0]}`,
		`{"change":["insert",1,[1],-1]}`, `{"change":["insert",1,[1],1.0]}`, `{"change":["insert",1,[1],9223372036854775808]}`, `{"change":["insert",1,[1],1,2]}`,
		`{"change":[2,"insert",[1],1]}`, `{"columns":null}`, `{"columns":"a"}`, `{"columns":[1]}`, `{"eoq":null}`, `{"eoq":1}`, `{"eoq":{"change_id":-1}}`,
		`{"eoq":{"change_id":1.5}}`, `{"error":null}`, `{"error":1}`, `{"later":}`, `{"later":1`, `{"error":"` + "\xff" + `"}`,
	}
	for _, cell := range []string{
		``, `,`, `1,`, `true`, `nul`, `nulll`, `{}`, `01`, `-`, `+1`, `.5`, `1.`, `1e`, `1e+`, `0x1`, `1_0`, `NaN`, `-Infinity`, `1e999`,
		`9223372036854775808`, `-9223372036854775809`, `18446744073709551617`, `99999999999999999999999`,
		`"`, `"a`, `"\`, `"\"`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\ud800"`, `"\ud800x"`, `"\ud800\u0041"`, `"\udc00"`, "\"\n\"", "\"\x00\"", "\"\xff\"", "\"\\n\xff\"",
		`[256]`, `[-1]`, `[1.0]`, `["a"]`, `[null]`, `[1,]`, `[,1]`, `[1`, `[[1]]`,
	} {
		lines = append(lines, `{"row":[1,[`+cell+`]]}`)
	}
	lines = slices.DeleteFunc(lines, func(s string) bool { return s == `{"row":[1,[]]}` })
	for _, line := range lines {
		ev, err := new(parser).parse([]byte(line))
		if err == nil {
			t.Errorf("%q: no error but %+v", line, ev)
		} else if len(err.Error()) > 400 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %q: want one line", line, err)
		}
	}
}

// What was delivered stays as it is when the parser's memory is used again.
func TestParseKeepsNoMemoryOfCells(t *testing.T) {
	var p parser
	line := []byte(`{"row":[1,["abc","d\n",[1,2,3]]]}`)
	ev, err := p.parse(line)
	if err != nil {
		t.Fatal(err)
	}
	kept := slices.Clone(ev.cells)
	for i := range line {
		line[i] = 'x'
	}
	if _, err := p.parse([]byte(`{"row":[1,["xyz","\t\t",[9,9,9]]]}`)); err != nil {
		t.Fatal(err)
	}
	if want := []any{"abc", "d\n", []byte{1, 2, 3}}; !reflect.DeepEqual(kept, want) {
		t.Errorf("became %#v, want %#v", kept, want)
	}
}

func FuzzEvent(f *testing.F) {
	for _, s := range []string{columns, rowA, eoq7, change1, change3, `{"error":"x"}`, `{"row":[1,[1,-9223372036854775808,1.5,1e300,"x",[1,2,255],null,"ü\"\n\ud83d\ude00"]]}`, `{"later":1}`} {
		f.Add([]byte(s))
	}
	var used parser // by one line after the other, as in a stream
	f.Fuzz(func(t *testing.T, line []byte) {
		ev, err := new(parser).parse(line)
		again, err2 := used.parse(line)
		ev.cells, again.cells = append([]any{}, ev.cells...), append([]any{}, again.cells...)
		if (err == nil) != (err2 == nil) || err == nil && fmt.Sprintf("%#v", ev) != fmt.Sprintf("%#v", again) {
			t.Fatalf("%+v, %v and then %+v, %v", ev, err, again, err2)
		}
		if err != nil {
			return
		}
		// encoding/json, which is slower, has to agree.
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.UseNumber()
		var v map[string]any
		if err := decoder.Decode(&v); err != nil {
			t.Fatalf("took %q: %v", line, err)
		}
		switch ev.typ {
		case eventRow:
			sameCells(t, ev.cells, v["row"].([]any)[1].([]any))
		case eventChange:
			list := v["change"].([]any)
			if list[0] != ev.kind.String() || list[3].(json.Number).String() != strconv.FormatInt(ev.id, 10) {
				t.Fatalf("%q: %v, %d", line, ev.kind, ev.id)
			}
			sameCells(t, ev.cells, list[2].([]any))
		}
	})
}

func sameCells(t *testing.T, got, want []any) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d cells, want %d", len(got), len(want))
	}
	for i := range got {
		ok := false
		switch want := want[i].(type) {
		case nil:
			ok = got[i] == nil
		case string:
			ok = got[i] == want && utf8.ValidString(want)
		case json.Number:
			if n, err := want.Int64(); err == nil {
				ok = got[i] == n
			} else if x, err := want.Float64(); err == nil {
				ok = got[i] == x
			}
		case []any:
			b, is := got[i].([]byte)
			ok = is && len(b) == len(want)
			for j := range b {
				ok = ok && want[j].(json.Number).String() == "-0" || ok && want[j].(json.Number).String() == strconv.Itoa(int(b[j]))
			}
		}
		if !ok {
			t.Fatalf("cell %d is %#v, want %#v", i, got[i], want[i])
		}
	}
}

func TestAppendStatement(t *testing.T) {
	for _, tt := range []struct {
		s    Statement
		want string
	}{
		{SQL("SELECT 1"), `{"query":"SELECT 1","params":[]}`},
		{SQL("SELECT \"a\"\n", nil, int64(math.MinInt64), 1, uint16(65535), true, false), `{"query":"SELECT \"a\"\n","params":[null,-9223372036854775808,1,65535,1,0]}`},
		{SQL("x", 1.0, 1e21, -0.5, 1e-7, math.MaxFloat64, 123456789.0), `{"query":"x","params":[1.0,1e+21,-0.5,1e-07,1.7976931348623157e+308,1.23456789e+08]}`},
		{SQL("x", "ü'\u2028", []byte{0, 255}, []byte{}, []byte(nil)), `{"query":"x","params":["ü'\u2028",[0,255],[],[]]}`},
	} {
		if b, err := appendStatement(nil, tt.s); err != nil || string(b) != tt.want {
			t.Errorf("%s, %v, want %s", b, err, tt.want)
		}
	}
	for _, tt := range []struct {
		s    Statement
		want string
	}{
		{SQL("x", 1, math.NaN()), `parameter 2 of "x": is NaN: want a finite number`},
		{SQL("x", math.Inf(-1)), `parameter 1 of "x": is -Inf: want a finite number`},
		{SQL("x", "\xff"), `parameter 1 of "x": text "\xff" is not UTF-8`},
		{SQL("\xff"), `statement "\xff": text "\xff" is not UTF-8`},
		{SQL("x", uint64(1)), `parameter 1 of "x": is a uint64: want nil, int64, int, uint16, bool, float64, string or []byte`},
	} {
		if _, err := appendStatement(nil, tt.s); err == nil || err.Error() != tt.want {
			t.Errorf("error %v, want %s", err, tt.want)
		}
	}
}

// What is written is read as the same value.
func TestValuesThereAndBack(t *testing.T) {
	for _, v := range []any{nil, int64(0), int64(math.MaxInt64), int64(math.MinInt64), int64(1<<53 + 1), 0.0, 1.0, -1.5, 1e100, math.SmallestNonzeroFloat64, "", "a\x00\u2028<&>\U0001f600", []byte{}, []byte{0, 1, 255}} {
		b, err := appendValue([]byte(`{"row":[1,[`), v)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := new(parser).parse(append(b, "]]}"...))
		if err != nil || !reflect.DeepEqual(ev.cells, []any{v}) {
			t.Errorf("%#v became %#v, %v", v, ev.cells, err)
		}
	}
}

// BenchmarkSnapshot reads the 64,768 containers of a whole cluster.
func BenchmarkSnapshot(b *testing.B) {
	const rows = 64768
	lines := make([][]byte, rows)
	size := 0
	for i := range lines {
		lines[i] = fmt.Appendf(nil, `{"row":[%d,["%064x","service-%d","server-%d","10.210.%d.%d",17%011d,null,"healthy",0,0,null]]}`+"\n", i+1, i, i%400, i/253, i/253, i%253+2, i)
		size += len(lines[i])
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		var p parser
		at := position{phase: inResult, columns: 10}
		for _, line := range lines {
			ev, err := p.parse(line)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := at.take(ev); err != nil {
				b.Fatal(err)
			}
		}
	}
}
