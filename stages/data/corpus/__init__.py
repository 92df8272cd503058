"""From external text to one table of documents."""
