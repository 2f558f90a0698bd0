"""The report: tables, plots, pictures, one HTML page."""
