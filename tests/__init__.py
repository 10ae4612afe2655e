"""Tests, laid out like the packages; helpers that many of them share are at this level."""
