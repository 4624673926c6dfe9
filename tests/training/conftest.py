"""Fixtures of trainings in several processes, for the modules that ask for them."""

from launched import begun, forked, one, patch  # noqa: F401
