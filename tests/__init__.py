"""Tests: they mirror the packages; helpers that many share lie at this level."""
