"""Generating engines: one signature, several implementations."""

from vconv.engines.base import Codes, Engine, Joining, State, create_engine

__all__ = ["Codes", "Engine", "Joining", "State", "create_engine"]
