"""The kinds of figures, one a file: each takes rows of the tidy table and returns a sheet, or ``None`` for no data."""
