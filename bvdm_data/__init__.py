"""Annotated live-cell video clips, synthesised while you train."""

from bvdm_data.clip import STAGES, CameraScale, Clip, TooManyNucleiError, association, divisions
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.detections import DetectionErrors
from bvdm_data.datasets.device_loader import DeviceLoader
from bvdm_data.datasets.mixed import MixedVideos, twin
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transforms import TransformError
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.textures import FastSettings
from bvdm_data.viz.figure import show

__version__ = "0.1.0"

__all__ = [
    "STAGES",
    "CTCVideos",
    "CameraScale",
    "Clip",
    "DetectionErrors",
    "DeviceLoader",
    "FastSettings",
    "MixedVideos",
    "PaperSettings",
    "PoolSettings",
    "ProceduralSettings",
    "SyntheticHeLaVideos",
    "TooManyNucleiError",
    "TransformError",
    "association",
    "check_clip",
    "divisions",
    "show",
    "twin",
]
