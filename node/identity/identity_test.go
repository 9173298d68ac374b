package identity

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const dirVar = "IDENTITY_TEST_DIR" // set in children of the test binary

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVar)
	if dir == "" {
		os.Exit(m.Run())
	}
	key, _, err := loadOrCreate(dir)
	if err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	os.Stdout.WriteString(key.Public().String())
}

// loadOrCreate is what a node does, at once.
func loadOrCreate(dir string) (key wgkey.Private, created bool, err error) {
	key, err = Load(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	return Create(dir, wgkey.NewPrivate())
}

func TestLoadOrCreate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the mode is not the umask's doing
	dir := filepath.Join(t.TempDir(), "jiji")
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load without a key: %v", err)
	}
	key, created, err := loadOrCreate(dir)
	if err != nil || !created {
		t.Fatalf("first time: created %v, %v", created, err)
	}
	again, created, err := loadOrCreate(dir)
	if err != nil || created || again != key {
		t.Errorf("second time: created %v, %v, the same key %v", created, err, again == key)
	}
	loaded, err := Load(dir)
	if err != nil || loaded != key {
		t.Errorf("Load: %v, the same key %v", err, loaded == key)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, FileName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("state directory holds %v", names)
	}
}

func TestRacingCallersAgree(t *testing.T) {
	dir := t.TempDir()
	var g sync.WaitGroup
	keys := make([]string, 12)
	for i := range keys {
		g.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), dirVar+"="+dir)
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			keys[i] = string(out)
		})
	}
	g.Wait()
	key, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k != key.Public().String() {
			t.Errorf("a process has the key %q, the file %s", k, key.Public())
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	key := wgkey.NewPrivate()
	secret := key.Base64()
	put := func(content string, mode fs.FileMode) func(string) error {
		return func(path string) error {
			return errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
		}
	}
	tests := []struct {
		name string
		make func(path string) error
		want string // in the error; PATH stands for the file; "" for none
	}{
		{"plain", put(secret+"\n", 0o600), ""},
		{"read-only", put(secret+"\n", 0o400), ""},
		{"no newline", put(secret, 0o600), ""},
		{"written on Windows", put(secret+"\r\n", 0o600), ""},
		{"link to a key", func(path string) error {
			return errors.Join(put(secret, 0o600)(path+".real"), os.Symlink(path+".real", path))
		}, ""},
		{"mode 644", put(secret+"\n", 0o644), "PATH has mode 0644, so others than its owner have access to the private key: chmod 600 PATH"},
		{"mode 640", put(secret+"\n", 0o640), "PATH has mode 0640"},
		{"mode 602", put(secret+"\n", 0o602), "PATH has mode 0602"},
		{"empty", put("", 0o600), "PATH is empty: put the key back from a backup"},
		{"only a newline", put("\n", 0o600), "PATH is empty"},
		{"cut off", put(secret[:20], 0o600), "PATH: private key: has 20 characters, want 44 of base64"},
		{"trailing garbage", put(secret+"\nleftovr", 0o600), "PATH: private key: has 52 characters"},
		{"two keys", put(secret+"\n"+secret+"\n", 0o600), "PATH: private key: has 89 characters"},
		{"space before", put(" "+secret+"\n", 0o600), "PATH: private key: has 45 characters"},
		{"no base64", put(strings.Repeat("!", 44), 0o600), "PATH: private key: is not base64"},
		{"all zero", put(strings.Repeat("A", 43)+"=", 0o600), "PATH: private key: all zero"},
		{"binary", put(strings.Repeat("\x00", 32), 0o600), "PATH: private key: has 32 characters"},
		{"huge", put(strings.Repeat(secret, 1000), 0o600), "PATH has 44000 bytes, want at most 4096"},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }, "PATH is a directory, want a regular file"},
		{"named pipe", func(path string) error { return syscall.Mkfifo(path, 0o600) }, "PATH is a named pipe, want a regular file"},
		{"link to a device", func(path string) error { return os.Symlink("/dev/zero", path) }, "PATH is a device, want a regular file"},
		{"link to nothing", func(path string) error { return os.Symlink("/nonexistent/key", path) }, "PATH is a symbolic link to /nonexistent/key, which does not exist"},
		{"link to itself", func(path string) error { return os.Symlink(path, path) }, "PATH: too many levels of symbolic links"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, FileName)
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			got, created, err := loadOrCreate(dir)
			if after, err := os.Lstat(path); err != nil || created || !os.SameFile(before, after) {
				t.Errorf("the file was replaced: %v", err)
			}
			if tt.want == "" {
				if err != nil || got != key {
					t.Errorf("error %v, the right key %v", err, got == key)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(tt.want, "PATH", path)) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error is %v\nwant %s", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), secret[:12]) || strings.Contains(err.Error(), "leftovr")) {
				t.Errorf("error quotes the content: %v", err)
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for path, want := range map[string]string{
		"/var/lib/jiji/private.key": "/var/lib/jiji/private.key",
		"/srv/my state/private.key": "'/srv/my state/private.key'",
		"/it's/$HOME":               `'/it'\''s/$HOME'`,
	} {
		if got := quote(path); got != want {
			t.Errorf("quote(%q) = %s, want %s", path, got, want)
		}
	}
}

func TestImport(t *testing.T) {
	key := wgkey.NewPrivate()
	conf := filepath.Join(t.TempDir(), "jiji0.conf")
	content := "[Interface]\nPrivateKey = " + key.Base64() + "\nAddress = 10.210.0.1/24\n"
	if err := os.WriteFile(conf, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "jiji")
	for _, when := range []string{"first", "second"} {
		if got, err := Import(dir, conf); err != nil || got != key {
			t.Fatalf("%s time: %v, the right key %v", when, err, got == key)
		}
	}
	if got, created, err := loadOrCreate(dir); err != nil || created || got != key {
		t.Errorf("afterwards: %v, the right key %v", err, got == key)
	}

	other := t.TempDir()
	own, _, err := loadOrCreate(other)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Import(other, conf)
	for _, want := range []string{filepath.Join(other, FileName), conf, own.Public().String(), key.Public().String()} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("over another key: %v, want %q in it", err, want)
		}
	}
	if kept, err := Load(other); err != nil || kept != own {
		t.Errorf("the other key is gone: %v", err)
	}

	if err := os.Chmod(conf, 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "jiji")
	if _, err := Import(fresh, conf); err == nil || !strings.Contains(err.Error(), "chmod 600 "+conf) {
		t.Errorf("from a file that all can read: %v", err)
	}
	if _, err := Import(fresh, conf+"x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from nothing: %v", err)
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a refused import made the state directory")
	}
}
