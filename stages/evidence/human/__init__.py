"""People as judges of summaries: blind pairs to rate, and what they said (claim C10)."""
