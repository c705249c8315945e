"""Generating engines: one signature, several implementations."""

from vconv.engines.base import Codes, Engine, State, create_engine

__all__ = ["Codes", "Engine", "State", "create_engine"]
