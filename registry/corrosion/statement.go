package corrosion

// A Statement is one SQL statement. Params are for its ?, in order; each is nil,
// int64, int, uint16, bool, float64, string or []byte. A bool becomes 1 or 0, a
// []byte a BLOB even if it is nil.
type Statement struct {
	SQL    string
	Params []any
}

// SQL returns a Statement.
func SQL(text string, params ...any) Statement { return Statement{text, params} }
