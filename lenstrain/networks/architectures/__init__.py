"""One file per network, named as in `model.arch`.

A file defines ``build(config)``, which takes a `lenstrain.config.ModelConfig` and returns a module
that maps float (B, 3, S, S) to features (B, F), with random weights, and F.
"""
