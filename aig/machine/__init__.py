"""How fast, not what: threads, precision, the layout of weights."""
