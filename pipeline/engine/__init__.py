"""Steps, keys and artifacts: a plan is carried out, artifacts are committed."""
