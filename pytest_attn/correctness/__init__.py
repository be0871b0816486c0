"""Whether an implementation is right: cases, a float64 oracle, an error budget. A library; it imports no pytest."""
