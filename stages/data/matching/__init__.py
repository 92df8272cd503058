"""Where two texts share words: the kernel of decontamination."""
