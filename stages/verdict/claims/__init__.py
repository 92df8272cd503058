"""What is claimed and what would settle it: decision rules fixed before the run, verdicts computed from artifacts."""
