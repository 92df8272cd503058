"""How numbers, drawings and pages are shown: one form for the report, the audits and the terminal."""
