"""Passes that turn plan and ranges into Q and DQ nodes."""
