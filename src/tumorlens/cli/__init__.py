"""The command line."""

from tumorlens.cli.app import main

__all__ = ["main"]
