"""A model as judge of summaries: an OpenAI-compatible endpoint or a local checkpoint (claim C10)."""
