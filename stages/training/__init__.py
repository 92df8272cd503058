"""Shards to models."""
