"""A training leg: the pipeline's stages within a given time, from images to figures. docs/leg.md describes it."""
