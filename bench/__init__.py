"""Speed and accuracy, side by side with other tools; not part of the package."""
