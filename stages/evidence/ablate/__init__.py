"""What a trained model loses when its memory is knocked out (claim C1)."""
