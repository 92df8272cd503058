"""Fine-tuning of trained arms on retrieval tasks or on summaries."""
