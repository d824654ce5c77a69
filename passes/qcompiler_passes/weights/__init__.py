"""Passes that round constants."""
