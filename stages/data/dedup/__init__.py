"""Near-duplicates inside the training text, filters, and the one table of what became of every document."""
