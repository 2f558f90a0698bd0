"""What samples are: images, points."""
