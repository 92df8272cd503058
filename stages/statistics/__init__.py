"""Statistics of the study: intervals, tests and curves (protocol, section Statistics)."""
