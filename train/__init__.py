"""Corpus preparation and training."""
