"""Finds evaluation text in training documents, removes it, and shows the evidence."""
