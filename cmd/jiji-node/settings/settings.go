// Package settings fills in what the command line leaves open: a flag beats the
// environment, which beats the configuration file, which beats the default; and
// it tells of each value where it came from.
package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/pflag"
)

// DefaultFile is the configuration file that need not exist.
const DefaultFile = "/etc/jiji/node.yaml"

const prefix = "JIJI_"

// Config says what is filled in, and from what.
type Config struct {
	// Flags are those of the command that runs, parsed. One of them, "config",
	// names the file; it may be missing unless the user named it.
	Flags *pflag.FlagSet
	// Environ is a list of "NAME=VALUE" as os.Environ returns it. JIJI_MTU is
	// for --mtu; an empty value sets nothing. In lists, commas separate.
	Environ []string
	// Known names the flags of all commands, and whatever else may be set: the
	// file and the environment are shared by commands that do not have them.
	Known []string
}

// A Value is what one flag ended up with.
type Value struct {
	Name   string
	Text   string // a list is separated by commas
	Origin string // "flag", "environment JIJI_MTU", "file /etc/jiji/node.yaml:12" or "default"
}

// Resolve sets the flags that the command line does not, and returns all of
// them but help, in order of name, and warnings: an orchestrator may inject
// JIJI_ names that are none of ours. Its errors are the user's.
func Resolve(cfg Config) (values []Value, warnings []string, err error) {
	known := slices.Clone(cfg.Known)
	cfg.Flags.VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
	slices.Sort(known)
	known = slices.Compact(known)

	environ := environment(cfg.Environ)
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if !slices.Contains(known, flagName(name)) {
			warnings = append(warnings, fmt.Sprintf("environment %s: no such setting, ignored%s",
				name, suggest(flagName(name), known, variable)))
		}
	}

	origins := map[string]string{}
	set := func(f *pflag.Flag, origin string, list []string) error {
		origins[f.Name] = origin
		return setFlag(f, list)
	}
	var errs []error
	cfg.Flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		switch text := environ[name]; {
		case f.Changed:
			origins[f.Name] = "flag"
		case text != "" && f.Name != "help":
			list := []string{text}
			if isList(f) {
				list = strings.Split(text, ",")
			}
			if err := set(f, "environment "+name, list); err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", name, err))
			}
		}
	})
	if len(errs) > 0 {
		return nil, warnings, errors.Join(errs...)
	}

	if file := cfg.Flags.Lookup("config"); file != nil {
		path, origin := file.Value.String(), origins["config"]
		entries, err := readFile(path, known)
		switch {
		case errors.Is(err, fs.ErrNotExist) && origin == "": // nobody asked for it
		case errors.Is(err, fs.ErrNotExist):
			if origin == "flag" {
				origin = "--config"
			}
			return nil, warnings, fmt.Errorf("%w (named by %s)", err, origin)
		case err != nil:
			return nil, warnings, err
		}
		for _, e := range entries {
			f := cfg.Flags.Lookup(e.name)
			if f == nil || f.Changed {
				continue
			}
			where := fmt.Sprintf("%s:%d", path, e.line)
			if e.list && !isList(f) {
				errs = append(errs, fmt.Errorf("%s: %s is a list, want one value", where, e.name))
			} else if err := set(f, "file "+where, e.values); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", where, e.name, err))
			}
		}
		if len(errs) > 0 {
			return nil, warnings, errors.Join(errs...)
		}
	}

	cfg.Flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		v := Value{Name: f.Name, Text: f.Value.String(), Origin: "default"}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			v.Text = strings.Join(list.GetSlice(), ",")
		}
		if origin := origins[f.Name]; origin != "" {
			v.Origin = origin
		}
		values = append(values, v)
	})
	return values, warnings, nil
}

// Nearest returns a better wording of an error of parsing flags: with the
// nearest flag for an unknown one, and what was expected for a wrong value.
func Nearest(err error, flags *pflag.FlagSet) error {
	var unknown *pflag.NotExistError
	var wrong *pflag.InvalidValueError
	switch {
	case errors.As(err, &wrong):
		f := wrong.GetFlag()
		return fmt.Errorf("--%s: %w", f.Name, expected(f, wrong.GetValue(), wrong.Unwrap()))
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		var names []string
		flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		slices.Sort(names)
		return fmt.Errorf("%w%s", err, suggest(unknown.GetSpecifiedName(), names, func(name string) string { return "--" + name }))
	}
	return err
}

// environment returns the JIJI_ variables; of one that is there twice, the last.
func environment(list []string) map[string]string {
	vars := map[string]string{}
	for _, entry := range list {
		if name, text, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, prefix) {
			vars[name] = text
		}
	}
	return vars
}

func variable(flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func flagName(variable string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, prefix), "_", "-"))
}

func isList(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// setFlag sets f, as if it had been on the command line. Only a list takes
// other than one value.
func setFlag(f *pflag.Flag, values []string) error {
	f.Changed = true
	if list, ok := f.Value.(pflag.SliceValue); ok {
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = strings.TrimSpace(v)
		}
		if err := list.Replace(trimmed); err != nil {
			return expected(f, strings.Join(values, ","), err)
		}
		return nil
	}
	if err := f.Value.Set(values[0]); err != nil {
		return expected(f, values[0], err)
	}
	return nil
}

// expected says what f wants instead of text.
func expected(f *pflag.Flag, text string, cause error) error {
	want := map[string]string{
		"bool":     "true or false",
		"duration": "a duration, such as 10s or 5m",
		"int":      "a whole number",
		"uint16":   "a number from 0 to 65535",
	}[f.Value.Type()]
	if want == "" {
		return fmt.Errorf("%q: %w", text, cause)
	}
	return fmt.Errorf("%q is not %s", text, want)
}

// suggest returns a question for the name that was probably meant, as it is
// spelled where name was found; nothing if no name is near.
func suggest(name string, names []string, spell func(string) string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, n := range names {
		if d := levenshtein.ComputeDistance(name, n); d < least {
			best, least = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", spell(best))
}
