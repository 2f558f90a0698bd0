"""Figures of merit: extractors, distances, evaluation."""
