"""Annotated live-cell video clips, synthesised while you train."""

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import STAGES, Clip, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.device_loader import DeviceLoader
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.real import CTCVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transform import TransformError
from bvdm_data.datasets.twin import twin
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.pool import PoolSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.texture import PaperSettings

__version__ = "0.1.0"

__all__ = [
    "STAGES",
    "CTCVideos",
    "CameraScale",
    "Clip",
    "DeviceLoader",
    "FastSettings",
    "MixedVideos",
    "PaperSettings",
    "PoolSettings",
    "ProceduralSettings",
    "SyntheticHeLaVideos",
    "TooManyNucleiError",
    "TransformError",
    "check_clip",
    "twin",
]
