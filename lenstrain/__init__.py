"""Train, score, evaluate and audit lens finders on lensprep datasets."""

from lensprep import __version__ as __version__
