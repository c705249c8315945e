"""Generating engines: one signature, several implementations."""
