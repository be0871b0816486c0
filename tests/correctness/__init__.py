"""Whether implementations agree with a float64 oracle."""
