package journal

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func sysctl(was string, set ...string) Change {
	c := Change{Kind: Sysctl, Name: "net/ipv4/ip_forward", Was: &Value{Text: was}}
	for _, s := range set {
		c.Set = append(c.Set, Value{Text: s})
	}
	return c
}

func TestFirstRecordWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	j := open(t, path)
	if len(j.Changes()) != 0 {
		t.Errorf("an absent journal has %v", j.Changes())
	}
	file := Change{Kind: File, Name: "/etc/x", Set: []Value{{Text: "a", Mode: 0o644}}}
	for _, err := range []error{j.Record(sysctl("0", "1"), file), j.Record(sysctl("7", "1")), j.Record(sysctl("8", "2"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, path)
	got := j.Changes()
	if len(got) != 2 || got[0].Was.Text != "0" || !reflect.DeepEqual(got[0].Set, []Value{{Text: "1"}, {Text: "2"}}) || got[0].At.IsZero() {
		t.Errorf("read back %+v", got)
	}
	if got[1].Was != nil || got[1].Set[0] != (Value{Text: "a", Mode: 0o644}) {
		t.Errorf("read back %+v", got[1])
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, c := range got {
		if err := j.Forget(c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty journal has a file: %v", err)
	}
}

func TestKnownChangeIsNotWrittenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	j := open(t, path)
	if err := j.Record(sysctl("0", "1")); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Record(sysctl("0", "1")); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again: %v", err)
	}
}

// What a newer version wrote stays, whatever it looks like.
func TestNewerVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	const text = `{"host":"web1","changes":[
		{"kind":"bpf","name":"program 7","was":42,"deep":{"a":[1]}},
		{"kind":"sysctl","name":"net/ipv4/ip_forward","was":{"text":"0","owner":"x"},"set":[{"text":"1"}],"at":"2026-01-02T03:04:05Z","why":"containers"}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	j := open(t, path)
	got := j.Changes()
	if len(got) != 2 || got[0].Known() || got[0].Name != "program 7" || !got[1].Known() || got[1].Was.Text != "0" {
		t.Fatalf("read %+v", got)
	}
	if err := j.Record(sysctl("5", "2")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := strings.Join(strings.Fields(string(data)), "")
	for _, want := range []string{`"host":"web1"`, `{"kind":"bpf","name":"program7","was":42,"deep":{"a":[1]}}`, `"why":"containers"`, `"owner":"x"`, `"set":[{"text":"1"},{"text":"2"}]`} {
		if !strings.Contains(plain, want) {
			t.Errorf("lost %s:\n%s", want, data)
		}
	}
}

func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	for _, text := range []string{"", "{", "[]", "null", "{}", `{"changes":7}`, `{"changes":[7]}`, `{"changes":[{"kind":"sysctl"}]}`,
		`{"changes":[{"kind":"sysctl","name":"x","was":"0"}]}`, `{"changes":[]} trailing`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if _, err := Open(path); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), path+" is damaged") {
			t.Errorf("%q: error %v", text, err)
		}
	}
	for _, c := range []string{`"sysctl","name":"../../etc/x"`, `"sysctl","name":"net/../../../etc/x"`, `"sysctl","name":"kernel/core_pattern"`, `"file","name":"/etc/../root/x"`,
		`"file","name":"/root/x"`, `"file","name":"etc/x"`, `"file","name":"/etc/a\u0000b"`, `"directory","name":"/var/lib"`, `"directory","name":"/etc/"`, `"socket","name":"x.sock"`} {
		if err := os.WriteFile(path, []byte(`{"changes":[{"kind":`+c+`,"set":[{"text":"1"}]}]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "change 1: no version changes the ") {
			t.Errorf("%s: error %v", c, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: error %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "want at most") {
		t.Errorf("a huge file: error %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Record(sysctl("\xff", "1")); err == nil {
		t.Error("a value that JSON would change was noted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"changes":[{"kind":"sysctl","name":"net/x","was":{"text":"0"},"set":[{"text":"1"}]}]}`))
	f.Add([]byte(`{"changes":[{"kind":"new","name":"x","was":3}],"more":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), FileName)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(path)
		if err != nil {
			return
		}
		before := j.Changes()
		if err := j.Record(Change{Kind: Directory, Name: "/etc/fuzz"}); err != nil {
			t.Fatal(err)
		}
		j, err = Open(path)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if got := j.Changes(); len(got) < len(before) || !reflect.DeepEqual(got[:len(before)], before) {
			t.Fatalf("read %+v, then %+v", before, got)
		}
	})
}
