"""Figures of the report, as PNG for the tracking server and as inline SVG for the page."""
