"""The audit of the tasks' own texts: what of them stands in the training text."""
