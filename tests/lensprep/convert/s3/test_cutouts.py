"""Cutouts in an object store are read by the workers, and are those of a local folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from astropy.io import fits

from lensprep.convert import CutoutConfig, convert
from lensprep.errors import InputError
from tests.lensprep.convert.conversions import CONFIG, digests
from tests.phase4c import tiny_pixels


def test_cutouts_in_a_store_are_those_of_a_local_folder(s3, tmp_path):
    folder = tmp_path / "cutouts"
    (folder / "deep").mkdir(parents=True)
    lines = ["key,ra,dec,label,file"]
    for number, image in enumerate(tiny_pixels(4)):
        name = f"deep/c{number}.fits"
        fits.writeto(folder / name, image)
        s3.store().write(f"cutouts/{name}", (folder / name).read_bytes())
        lines.append(f"c{number},{40 * number},{number},1,{name}")
    catalog = tmp_path / "found.csv"
    catalog.write_text("\n".join(lines))
    s3.store().write("found.csv", catalog.read_bytes())
    for out, source, where in (
        ("a", str(catalog), str(folder)),
        ("b", f"{s3.uri}/found.csv", f"{s3.uri}/cutouts"),
    ):
        config = replace(CONFIG, cutouts=CutoutConfig(folders=(where,)))
        convert(source, str(tmp_path / out), config, workers=1, options=s3.options())
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    catalog.write_text("\n".join(line.rsplit(",", 1)[0].split(",", 1)[1] for line in lines))
    with pytest.raises(InputError, match="are not matched by position"):
        convert(str(catalog), str(tmp_path / "c"), config, workers=1, options=s3.options())
