"""Continuing and condensing held-out documents and books: what is written, what can be counted of it (claim C10)."""
