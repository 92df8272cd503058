"""Text to documents to clean shards of tokens, and prompts with known answers."""
