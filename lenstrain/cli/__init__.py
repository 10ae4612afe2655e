"""The command `lenstrain`: parse, call, print."""

from lenstrain.cli.group import main

__all__ = ["main"]
