"""Infini-attention and its matched baselines: torch and safetensors only, usable from a notebook.

``config`` is importable without torch; everything else is imported from its own module
(``from model.decoder import Decoder``).
"""

from model import kinds as kinds  # the arms, made known
