"""The old address of :mod:`bvdm_data.evaluation`, kept for one release."""

import sys

from bvdm_data.evaluation import arms, evaluate

sys.modules[f"{__name__}.arms"] = arms
sys.modules[f"{__name__}.evaluate"] = evaluate
