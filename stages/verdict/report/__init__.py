"""The report: verdicts, numbers with their rows, figures; one HTML page, Markdown and JSON."""
