"""The old address of :mod:`bvdm_data.datasets.transforms`, kept for one release."""

from bvdm_data.datasets.transforms import TransformError
from bvdm_data.datasets.transforms import apply_transform as transformed

__all__ = ["TransformError", "transformed"]
