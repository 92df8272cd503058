"""Alignment of trained arms: supervised on conversations, and by preferences (claim C11)."""
