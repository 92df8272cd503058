"""Positive control: a task that only a memory across segments can solve."""
