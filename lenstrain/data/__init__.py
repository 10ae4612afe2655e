"""Stamps for training and scoring: exact, resumable epochs from shards, read ahead."""

from lenstrain.data.batch import Batch
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.data.loader import StampLoader
from lenstrain.data.opener import register_s3
from lenstrain.data.selection import hard_negative_weights

__all__ = ["Batch", "CacheOptions", "StampLoader", "hard_negative_weights", "register_s3"]
