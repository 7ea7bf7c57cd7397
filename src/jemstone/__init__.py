"""jemstone: train any classifier as the energy-based model that it already is."""

__version__ = "0.1.0"
