"""Models to rows."""
