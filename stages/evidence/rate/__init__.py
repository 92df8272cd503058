"""Embedding similarity, BERTScore and entailment of summaries by local models (claim C10)."""
