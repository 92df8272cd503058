"""The contamination audit, for readers."""
