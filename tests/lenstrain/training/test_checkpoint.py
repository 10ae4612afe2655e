"""Checkpoints: whole or absent, nothing executed, the damaged one not fatal."""

import random
import resource
import zipfile

import numpy as np
import pytest
import torch

from lensprep.configfile import to_mapping
from lensprep.convert.tasks import peak_rss_bytes
from lensprep.errors import CheckpointError, StorageError
from lenstrain.networks.finder import build_model
from lenstrain.training import checkpoint
from lenstrain.training.checkpoint import (
    FORMAT,
    FORMAT_VERSION,
    LAST,
    PREVIOUS,
    REQUIRED,
    keep_as_last,
    load_checkpoint,
    load_latest,
    load_model,
    rng_state,
    save_checkpoint,
    save_last,
    set_rng_state,
)
from tests.checkpoints import blank_content


@pytest.fixture
def content(make_config):
    config = make_config()
    model = build_model(config.model)
    return {
        **blank_content(),
        "model": model.state_dict(),
        "ema": None,
        "config": to_mapping(config),
        "step": 7,
    }


def test_what_was_saved_is_loaded(tmp_path, content):
    path = tmp_path / "a.pt"
    save_checkpoint(path, content)
    loaded = load_checkpoint(path)
    assert loaded["step"] == 7
    assert loaded["format"] == FORMAT
    for name, value in content["model"].items():
        assert torch.equal(loaded["model"][name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_leaves_the_older_file(tmp_path, content):
    path = tmp_path / "a.pt"
    save_checkpoint(path, content)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):  # before 3.13, and from it on
        save_checkpoint(path, {**content, "step": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_further_names_keep_their_content_when_the_last_moves_on(tmp_path, content):
    save_last(tmp_path, {**content, "step": 1}, ["best.pt"])
    save_last(tmp_path, {**content, "step": 2}, [])
    save_last(tmp_path, {**content, "step": 3}, [])
    steps = {p.name: load_checkpoint(p)["step"] for p in tmp_path.iterdir()}
    assert steps == {"best.pt": 1, PREVIOUS: 2, LAST: 3}


def flip_a_bit(data, tensor):
    """Change one bit of a stored tensor: the archive stays whole, the number is another."""
    place = data.index(tensor.numpy().tobytes())
    data = bytearray(data)
    data[place + 1] ^= 4
    return data


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "head", "bit"])
def test_a_damaged_last_falls_back_to_the_one_before(tmp_path, content, damage):
    save_last(tmp_path, {**content, "step": 1}, [])
    save_last(tmp_path, {**content, "step": 2}, [])
    assert load_latest(tmp_path).content["step"] == 2
    data = bytearray((tmp_path / LAST).read_bytes())
    data = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
        "head": b"\0" * 64 + data[64:],
        "bit": flip_a_bit(data, content["model"]["head.weight"]),
    }[damage]
    (tmp_path / LAST).unlink()
    (tmp_path / LAST).write_bytes(data)
    with pytest.warns(UserWarning, match="Falling back"):
        found = load_latest(tmp_path)
    assert found.path.name == PREVIOUS
    assert found.content["step"] == 1


def test_after_a_fall_back_the_damaged_file_never_becomes_the_one_before(tmp_path, content):
    save_last(tmp_path, {**content, "step": 1}, [])
    save_last(tmp_path, {**content, "step": 2}, [])
    (tmp_path / LAST).unlink()
    (tmp_path / LAST).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="Falling back"):
        keep_as_last(load_latest(tmp_path).path)
    assert load_latest(tmp_path).content["step"] == 1
    save_last(tmp_path, {**content, "step": 3}, [])
    assert load_checkpoint(tmp_path / PREVIOUS)["step"] == 1
    assert load_checkpoint(tmp_path / LAST)["step"] == 3


def test_a_damaged_only_checkpoint_is_an_error(tmp_path):
    (tmp_path / LAST).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="it is no zip archive"):
        load_latest(tmp_path)


def no_more_files(folder):
    """Too many open files: as full as the system is, or this process's share of it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (folder / LAST).open("rb") as file:
        lowest = file.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def a_disk_that_fails(folder):
    """The file opens, and reading it fails."""
    kept = folder / "kept"
    (folder / LAST).rename(kept)
    (folder / LAST).symlink_to("/proc/self/mem")
    return lambda: kept.replace(folder / LAST)


@pytest.mark.parametrize(
    ("refuse", "text"),
    [(no_more_files, "Too many open files"), (a_disk_that_fails, "Invalid argument")],
)
def test_a_last_that_cannot_be_read_just_now_is_not_replaced(tmp_path, content, refuse, text):
    save_last(tmp_path, {**content, "step": 1}, [])
    save_last(tmp_path, {**content, "step": 2}, [])
    allow = refuse(tmp_path)
    try:
        with pytest.raises(StorageError) as caught:
            load_latest(tmp_path)
    finally:
        allow()
    assert str(caught.value) == f"{tmp_path / LAST} cannot be read: {text}."
    assert load_latest(tmp_path).content["step"] == 2


def test_a_whole_last_of_another_version_is_not_replaced_either(tmp_path, content):
    save_last(tmp_path, {**content, "step": 1}, [])
    save_last(tmp_path, content, [])
    torch.save({**load_checkpoint(tmp_path / LAST), "format_version": 2}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match="checkpoint format 2"):
        load_latest(tmp_path)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_loading_executes_nothing(tmp_path, content, capsys):
    path = tmp_path / "evil.pt"
    save_checkpoint(path, {**content, "versions": Payload()})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no checkpoint of lenstrain"),
        ({"format_version": FORMAT_VERSION + 1}, "checkpoint format 2; this version reads 1"),
        ({"stopper": ...}, "lacks 'stopper'"),
    ],
)
def test_a_foreign_or_incomplete_file_is_refused(tmp_path, content, change, message):
    path = tmp_path / "a.pt"
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **content, **change}
    content = {k: v for k, v in content.items() if v is not ...}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"is a folder.*best\.pt"):
        load_checkpoint(tmp_path)
    best = tmp_path / "checkpoints" / "best.pt"
    best.parent.mkdir()
    best.touch()
    with pytest.raises(CheckpointError, match=f"Name a file, such as {best}"):
        load_checkpoint(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(CheckpointError, match="it is a converted dataset"):
        load_checkpoint(tmp_path)


def foreign_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.touch(), "it is empty."),
        (lambda path: path.write_text("text"), "it is no zip archive."),
        (foreign_archive, "(torch.load: RuntimeError: "),
        (lambda path: torch.save({"x": Payload()}, path), "(torch.load: UnpicklingError)."),
    ],
    ids=["empty", "text", "archive", "pickle"],
)
def test_what_is_no_checkpoint_is_not_called_damaged(tmp_path, write, text):
    path = tmp_path / "a.pt"
    write(path)
    with pytest.raises(CheckpointError, match="is no checkpoint of lenstrain") as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert text in message
    assert "damaged" not in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_a_configuration_that_is_not_understood_is_told_with_the_file_and_its_maker(
    tmp_path, content
):
    path = tmp_path / "a.pt"
    content["config"]["data"]["batch_size"] = "x"
    save_checkpoint(path, {**content, "versions": {"lenstrain": "0.0.7"}})
    with pytest.raises(CheckpointError, match=f"{path}, made by lenstrain 0.0.7, .*batch_size"):
        load_model(path)


def test_the_averaged_weights_are_scored_with_if_there_are_any(tmp_path, content):
    path = tmp_path / "a.pt"
    save_checkpoint(path, content)
    model, meta = load_model(path)
    assert not model.training
    assert meta["step"] == 7
    assert "optimizer" not in meta
    assert torch.equal(model.state_dict()["head.weight"], content["model"]["head.weight"])
    average = {name: value + 1 for name, value in content["model"].items()}
    save_checkpoint(path, {**content, "ema": average})
    model, _ = load_model(path)
    assert torch.equal(model.state_dict()["head.weight"], average["head.weight"])


def test_a_model_loads_where_its_starting_weights_are_gone(tmp_path, content):
    content["config"]["model"]["weights"] = "/no/such/file.pt"
    save_checkpoint(tmp_path / "a.pt", content)
    load_model(tmp_path / "a.pt")


ODD = [None, 3, -1, "x", [], {}, [1, 2], float("nan"), torch.zeros(3), True, 10**30]


@pytest.mark.parametrize("key", [*REQUIRED, "format", "format_version"])
def test_what_is_of_another_type_is_refused(tmp_path, content, key):
    refused = 0
    for value in ODD:
        save_checkpoint(tmp_path / "a.pt", {**content, key: value})
        try:
            load_model(tmp_path / "a.pt")
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused >= 5


@pytest.mark.parametrize(
    "change", [{"width": 10**30}, {"width": 1 << 24}, {"blocks": [64, 64, 64]}]
)
def test_a_claim_of_a_large_network_takes_no_memory(tmp_path, content, change):
    model = {**content["config"]["model"], **change}
    config = {**content["config"], "model": model}
    save_checkpoint(tmp_path / "a.pt", {**content, "config": config})
    before = peak_rss_bytes()
    with pytest.raises(CheckpointError, match=r"do not fit|must lie between 8 and 16777216"):
        load_model(tmp_path / "a.pt")
    assert peak_rss_bytes() - before < 200e6


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path, content):
    content["config"]["model"]["width"] = 16
    save_checkpoint(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(tmp_path / "a.pt")


def test_every_generator_goes_on_where_it_was(tmp_path, content):
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is what is saved
    torch.manual_seed(3)
    random.gauss(0, 1)
    save_checkpoint(tmp_path / "a.pt", {**content, "rng": [rng_state()]})

    def draws():
        return random.gauss(0, 1), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    expected = draws()
    assert draws() != expected
    set_rng_state(load_checkpoint(tmp_path / "a.pt")["rng"][0])
    assert draws() == expected


def test_what_torch_would_not_have_written_is_not_unpacked(tmp_path, content, monkeypatch):
    """A small file of parts that unfold to much memory; and one of more bytes than any network."""
    path, packed = tmp_path / "a.pt", tmp_path / "packed.pt"
    save_checkpoint(path, content)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"packed.pt is no checkpoint.*compressed"):
        load_checkpoint(packed)
    monkeypatch.setattr(checkpoint, "MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="too many for a checkpoint"):
        load_checkpoint(path)
