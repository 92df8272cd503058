"""``python -m pipeline.cli`` is ``infini-study``."""

from pipeline.cli.app import main

main()
