"""Speed and memory of the models, side by side in one run: ``python -m bench.speed``."""
