"""The study file, what it expands to, and what is wrong with it."""
