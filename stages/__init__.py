"""What the study does: one module or package per stage, all behind the contract in ``stage.py``."""
