"""Passes that lower the QDQ dialect to one of the output forms."""
