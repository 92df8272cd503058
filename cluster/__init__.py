"""Where a study runs: Ray connections, storage and the Ray Train set-up."""
