"""What the instrument measures where the answer is known: published capacity points and recall cells."""
