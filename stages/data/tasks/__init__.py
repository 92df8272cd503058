"""Synthetic tasks on real text, and the rows that train them."""

from stages.data.tasks.training import training_rows

__all__ = ["training_rows"]
