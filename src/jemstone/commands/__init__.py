"""The commands that put a model to work, a file each: its NAME and HELP, its `parser`, and what it does, `run`."""

from __future__ import annotations

from types import ModuleType

from jemstone.commands import audit, drift, export, predict, publish, score, serve, wrap

COMMANDS: tuple[ModuleType, ...] = (wrap, predict, serve, score, drift, audit, export, publish)
"""In the order in which `jemstone --help` lists them, after those that make and measure runs."""
