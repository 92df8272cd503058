"""The files people deploy: KubeRay, Ray's autoscaler, Slurm, Docker."""

from __future__ import annotations

from pathlib import Path


def deployment_files() -> dict[str, bytes]:
    """Content by name of the files in ``cluster/deploy``."""
    folder = Path(__file__).parent / "deploy"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
