"""Trained models without the pipeline: load, sample, export, publish."""
