"""The report: one page that compares trained methods."""
