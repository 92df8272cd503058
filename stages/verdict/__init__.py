"""Rows to verdicts and the report."""
