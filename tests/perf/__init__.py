"""How fast implementations are and how much memory they take."""
