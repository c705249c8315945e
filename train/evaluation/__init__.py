"""Measuring conversion: ``vconv evaluate`` (docs/evaluation.md)."""
