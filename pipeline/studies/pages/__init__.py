"""The studies' pages."""
