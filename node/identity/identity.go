// Package identity keeps a server's WireGuard private key: made once, on the
// server, and used for ever. No error of it quotes a key, or a line that may hold one.
package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// FileName is the name of the key file in the state directory.
const FileName = "private.key"

const (
	keyLimit     = 4 << 10 // bytes of a key file that are looked at
	wgQuickLimit = 1 << 20 // and of a wg-quick file
)

// Load reads the key in dir. Its error wraps fs.ErrNotExist when there is none.
func Load(dir string) (wgkey.Private, error) {
	path := filepath.Join(dir, FileName)
	data, err := readSecret(path, keyLimit)
	if errors.Is(err, fs.ErrNotExist) {
		if target, linkErr := os.Readlink(path); linkErr == nil { // not "absent": nothing may be put in its place
			return wgkey.Private{}, fmt.Errorf("read private key: %s is a symbolic link to %s, which does not exist", path, target)
		}
	}
	if err != nil {
		return wgkey.Private{}, fmt.Errorf("read private key: %w", err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return wgkey.Private{}, fmt.Errorf("read private key: %s is empty: put the key back from a backup, or remove the file to become a new server", path)
	}
	key, err := wgkey.ParsePrivate(text)
	if err != nil {
		return wgkey.Private{}, fmt.Errorf("read private key: %s: %w", path, err)
	}
	return key, nil
}

// Import takes over the private key of a wg-quick file. It never replaces
// another key; where dir has the same one already it does nothing.
func Import(dir, wgQuickFile string) (wgkey.Private, error) {
	data, err := readSecret(wgQuickFile, wgQuickLimit)
	if err != nil {
		return wgkey.Private{}, fmt.Errorf("import private key: %w", err)
	}
	conf, err := ParseWGQuick(wgQuickFile, data)
	if err != nil {
		return wgkey.Private{}, fmt.Errorf("import private key: %w", err)
	}
	key, err := Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		key, _, err = Create(dir, conf.PrivateKey)
	}
	if err != nil {
		return wgkey.Private{}, err
	}
	if key != conf.PrivateKey {
		return wgkey.Private{}, fmt.Errorf("import private key: %s holds another key already (its public key is %s, that of %s is %s): move it away first to become that server",
			filepath.Join(dir, FileName), key.Public(), wgQuickFile, conf.PrivateKey.Public())
	}
	return key, nil
}

// Create makes dir, stores key in it and returns it. Where there is a key
// already, it returns that one: of several processes at it at once one creates
// the key and all return it.
func Create(dir string, key wgkey.Private) (stored wgkey.Private, created bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return wgkey.Private{}, false, fmt.Errorf("make state directory: %w", err)
	}
	err = statefile.Create(filepath.Join(dir, FileName), []byte(key.Base64()+"\n"), 0o600)
	if errors.Is(err, fs.ErrExist) {
		key, err = Load(dir)
		return key, false, err
	}
	if err != nil {
		return wgkey.Private{}, false, fmt.Errorf("store private key: %w", err)
	}
	return key, true, nil
}

// readSecret reads a file that nobody but its owner may have access to.
func readSecret(path string, limit int64) ([]byte, error) {
	data, mode, err := statefile.Read(path, limit)
	if err != nil {
		return nil, err
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so others than its owner have access to the private key: chmod 600 %s", path, mode.Perm(), quote(path))
	}
	return data, nil
}

// quote returns path as one word of a shell.
func quote(path string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%"
	if strings.Trim(path, plain) == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
