"""The report: one HTML file that shows what a run found, built from what the run left on disk."""
