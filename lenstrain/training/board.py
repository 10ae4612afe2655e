"""What TensorBoard says beside a number, a curve or a picture."""

from __future__ import annotations

from typing import Any

from tensorboard.data_compat import migrate_value


def annotate(summary: Any, description: str) -> Any:
    """The same summary, of one value of torch's, with a description in Markdown.

    Its value becomes a tensor: of numbers and pictures as torch writes them, TensorBoard's data
    server drops the description.
    """
    (value,) = summary.value
    value.metadata.summary_description = description
    value.CopyFrom(migrate_value(value))
    return summary
