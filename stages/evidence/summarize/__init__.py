"""Continuing and condensing held-out documents, scored by ROUGE (claim C10, its automatic part)."""
