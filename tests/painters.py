"""Old names of tests/helpers/denoisers.py."""

from tests.helpers.denoisers import LinearDenoiser as LinearPainter
from tests.helpers.denoisers import OneStepStudent as OneCallPainter
from tests.helpers.denoisers import make_random_denoiser as random_painter
from tests.helpers.denoisers import make_still_cell as still_life
from tests.helpers.denoisers import make_wavy_contours as wavy

__all__ = ["LinearPainter", "OneCallPainter", "random_painter", "still_life", "wavy"]
