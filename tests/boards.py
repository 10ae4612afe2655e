"""What TensorBoard itself reads from the events of a run."""

import io

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


class Board:
    """The events in a folder."""

    def __init__(self, folder):
        self.events = EventAccumulator(str(folder), {"tensors": 0}).Reload()

    def tags(self, plugin):
        """Tags of numbers (``scalars``), of pictures (``images``) or of curves (``pr_curves``)."""
        found = self.events.Tags()["tensors"]
        return [tag for tag in found if self.metadata(tag).plugin_data.plugin_name == plugin]

    def metadata(self, tag):
        return self.events.SummaryMetadata(tag)

    def tensors(self, tag):
        """Steps and values of a tag."""
        return [(e.step, make_ndarray(e.tensor_proto)) for e in self.events.Tensors(tag)]

    def scalars(self):
        """Steps and values of every number."""
        return {tag: [(step, float(value)) for step, value in self.tensors(tag)]
                for tag in self.tags("scalars")}  # fmt: skip

    def pictures(self, tag):
        """Steps and pixels of a tag."""
        return [(step, np.asarray(Image.open(io.BytesIO(parts[2]))))
                for step, parts in self.tensors(tag)]  # fmt: skip
