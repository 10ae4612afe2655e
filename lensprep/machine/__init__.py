"""What a machine has, and how fast its disks and stores are: what both doctors report."""

from lensprep.machine.disk import measure_disk
from lensprep.machine.findings import judged, passed
from lensprep.machine.page import doctor_page
from lensprep.machine.report import (
    Tell,
    closed,
    dataset_facts,
    machine_facts,
    machine_report,
    source_text,
    store_report,
)

__all__ = [
    "Tell",
    "closed",
    "dataset_facts",
    "doctor_page",
    "judged",
    "machine_facts",
    "machine_report",
    "measure_disk",
    "passed",
    "source_text",
    "store_report",
]
