"""Parts: names for the parts of the work, so that a profiler can tell what each costs."""

from contextlib import AbstractContextManager

from torch.profiler import record_function

PARTS = (
    "lives", "labels", "flow", "noise", "outlines", "network", "scene", "camera", "annotations",
)  # fmt: skip
"""What making a clip by the fast method consists of, in order."""

MARK = "bvdm_data::"
"""What the names of the parts begin with in a profile."""


def part(name: str) -> AbstractContextManager[object]:
    """Mark a part of the work for ``torch.profiler``; costs some microseconds.

    Args:
        name: Out of ``PARTS``.
    """
    mark: AbstractContextManager[object] = record_function(MARK + name)
    return mark
