import filecmp
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ctc_metrics.metrics import seg, tra
from ctc_metrics.scripts.evaluate import evaluate_sequence
from ctc_metrics.scripts.validate import validate_sequence

from bvdm_data.camera_scale import CameraScale
from bvdm_data.datasets import export as exporting
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.export import MANIFEST, export
from bvdm_data.synth.generator import SceneSettings, synthesise
from bvdm_data.synth.texture import PaperSettings

STEPS = PaperSettings(first_steps=2, later_steps=1)
