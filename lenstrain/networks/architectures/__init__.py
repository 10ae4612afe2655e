"""One file per network, named as in `model.arch`.

A file defines ``build(config, bands, side)``, which takes a `lenstrain.config.ModelConfig`, the
number of bands, and the side in pixels of what the network sees. It returns a module that maps
float (B, bands, side, side) to features (B, F), with random weights, and F.
"""
