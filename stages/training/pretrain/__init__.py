"""Short-context base training and continual pretraining of the arms."""
