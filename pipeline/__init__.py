"""The engine: studies, plans, keys, artifacts and runs. It knows nothing of attention or books."""
