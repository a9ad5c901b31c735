"""The report: one HTML file with the results of a run, built from its files."""
