"""Images in: sources, preprocessing, the stored arrays."""
