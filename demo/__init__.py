"""The demonstration: a synthetic corpus and the web page."""
