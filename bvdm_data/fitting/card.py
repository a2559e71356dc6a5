"""Card: what a fitted model says of its data, its trainings and the versions that made it."""

import importlib.metadata
import platform

from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.flow import Overlap
from bvdm_data.fitting.lives import whole_cycles
from bvdm_data.fitting.stages import daughters_of
from bvdm_data.fitting.training import TrainingLog, TrainingSettings
from bvdm_data.fitting.video import Video


def what_was_read(source: CTCSequence, video: Video, crops: Crops) -> dict[str, object]:
    """Return what the card says of the data, as JSON values.

    Args:
        source: The video's files.
        video: What was read of them.
        crops: Nuclei cut out of it.
    """
    return {
        "data_set": source.folder.resolve().name,
        "sequence": source.name,
        "truth": source.truth,
        "frames": len(video.frames),
        "size": list(source.shape),
        "tracks": len(video.tracks),
        "divisions": len(daughters_of(video.tracks)),
        "whole_cycles": len(whole_cycles(video.tracks)),
        "nuclei": len(crops.track),
    }


def trained(log: TrainingLog, settings: TrainingSettings) -> dict[str, object]:
    """Return what the card says of a training, as JSON values.

    Args:
        log: Its losses.
        settings: Steps, batch, rate.
    """
    return {
        "steps": settings.steps,
        "batch": settings.batch,
        "rate": settings.rate,
        "average": settings.average,
        "loss": [round(loss, 6) for _, loss in log.train],
        "held_out_loss": [round(loss, 6) for _, loss in log.held_out],
        "checked_at": [step for step, _ in log.held_out],
        "hours": round(log.seconds / 3600, 3),
    }


def overlaps(overlap: Overlap) -> dict[str, object]:
    """Return what the card says of how well the flow carries masks, as JSON values.

    Args:
        overlap: Before and after.
    """
    return {
        "held_out_pairs": overlap.pairs,
        "overlap_before": round(overlap.before, 4),
        "overlap_after": round(overlap.after, 4),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what is fitted."""
    names = ("bvdm-data", "torch", "numpy", "scipy", "kornia")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
