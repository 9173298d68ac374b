package topology

import (
	"bytes"
	"fmt"

	"github.com/acidtib/jiji-node/node/statefile"
)

// Load reads the file at path. Its error wraps fs.ErrNotExist when there is none.
func Load(path string) (Topology, error) {
	data, _, err := statefile.Read(path, maxSize)
	if err != nil {
		return Topology{}, fmt.Errorf("read topology: %w", err)
	}
	return Parse(path, data)
}

// Save replaces the file at path, unless it holds t as it is. It refuses a
// topology that Load would refuse.
func Save(path string, t Topology) error {
	if err := Check(t); err != nil {
		return fmt.Errorf("save topology: %w", err)
	}
	text := t.Marshal()
	if known, _, err := statefile.Read(path, maxSize); err == nil && bytes.Equal(known, text) {
		return nil
	}
	if err := statefile.Write(path, text, 0o644); err != nil {
		return fmt.Errorf("save topology: %w", err)
	}
	return nil
}
