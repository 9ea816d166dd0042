"""The embedded world as it is served: its people, its words, its judges."""
