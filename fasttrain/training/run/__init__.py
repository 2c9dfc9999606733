"""A run: where it stands, and what is due as images go by."""
