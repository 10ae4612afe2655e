"""What decides a dataset's content."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import DECALS
from lensprep.errors import ConfigError
from tests.surveytree import tiny_survey


def test_a_bad_where_is_told_before_anything_is_made(tree, tmp_path):
    config = ConvertConfig(where="theta_e_arcsecs >= 0.5")
    with pytest.raises(ConfigError, match="theta_e_arcsec"):
        convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    assert not (tmp_path / "ds").exists()


def test_shards_of_larger_stamps_have_fewer_rows_unless_they_are_given():
    large = tiny_survey(bands="ugrizyjh", side=256)
    assert ConvertConfig().facts["shard_rows"] == 8192
    assert ConvertConfig().facts == ConvertConfig(shard_rows=8192).facts
    assert ConvertConfig(survey=tiny_survey(bands="r", side=32)).rows_per_shard == 8192
    rows = ConvertConfig(survey=large).facts["shard_rows"]
    assert (
        DECALS.shard_bytes(8192) <= large.geometry.shard_bytes(rows) < 2 * DECALS.shard_bytes(8192)
    )
    assert ConvertConfig(survey=large, shard_rows=8192).facts["shard_rows"] == 8192
    with pytest.raises(ConfigError, match="shard_rows must be at least 1, got 0"):
        ConvertConfig(shard_rows=0)


def test_a_seed_of_numpy_is_a_plain_number_in_plan_and_manifest():
    config = ConvertConfig(seed=np.int64(3), clip=np.float32(5), skip_bad_files=np.bool_(True))
    assert json.dumps(config.identity) == json.dumps(ConvertConfig(seed=3, clip=5.0).identity)
    assert config.skip_bad_files is True
    for options in ({"seed": 1.5}, {"shard_rows": True}, {"normalize": "MAD"}):
        with pytest.raises(ConfigError):
            ConvertConfig(**options)
