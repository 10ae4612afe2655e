"""The command `lensprep`: parse, call, print."""

from lensprep.cli.group import main

__all__ = ["main"]
