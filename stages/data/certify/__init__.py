"""A second, independent count of what evaluation documents share with the training documents."""
