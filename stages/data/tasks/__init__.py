"""Retrieval tasks on real text: what they are, the registry of all there are, and the rows that train them."""

from stages.data.tasks.haystack import Haystack, Prompt, Trial
from stages.data.tasks.registry import register
from stages.data.tasks.task import Task
from stages.data.tasks.training import training_rows

__all__ = ["Haystack", "Prompt", "Task", "Trial", "register", "training_rows"]
