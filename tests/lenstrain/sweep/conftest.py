"""A dataset whose test split cannot be read, and a sweep of tiny trials."""

import pytest

from tests.datasets import tiny_dataset

SWEEP = """
[fixed]
model = {{ arch = "resnet_small", width = 8, blocks = [1, 1], crop = 16 }}
data.batch_size = 12
eval.batch_size = 18
eval.fpr = 0.1
optim.lr = 2e-3
train = {{ epochs = 2, device = "cpu", log_every = 3, pictures = false }}
{fixed}

[search]
trials = 3
objective = "nll"
{search}

[refit]
top = 2
seeds = [1, 2, 3]
epochs = 1

[space]
model.width = {width}
optim.lr = {{ low = 1e-3, high = 3e-3, log = true }}
"""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """60 rows to train on, 30 to validate on; the shards of the test split are gone."""
    folder = tmp_path_factory.mktemp("sweep")
    path = tiny_dataset(folder, {"train": 60, "val": 30, "test": 30}, signal=True)
    for file in (path / "test").iterdir():
        file.unlink()
    return str(path)


@pytest.fixture
def write_sweep(tmp_path):
    """Writes a sweep's file: widths to choose from, further lines for its sections."""

    def write(width, fixed="", search=""):
        path = tmp_path / "sweep.toml"
        path.write_text(SWEEP.format(width=width, fixed=fixed, search=search))
        return path

    return write
