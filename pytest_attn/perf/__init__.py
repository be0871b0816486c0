"""How fast and how large: contracts, timers, memory, records. A library; it imports no pytest."""
