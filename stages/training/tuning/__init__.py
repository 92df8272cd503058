"""What fine-tuning and alignment share: settings, rows of their own lengths, the way into the training loop."""
