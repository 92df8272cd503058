"""Tokenizer and token shards."""
