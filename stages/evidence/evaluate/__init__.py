"""Held-out perplexity and retrieval of one trained model."""
