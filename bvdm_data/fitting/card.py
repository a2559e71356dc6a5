"""What the card of a model says of the video that it is fitted to."""

import numpy as np

from bvdm_data.clip import PHASES
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.fitting.contours import LEAST_OVERLAP, Contours
from bvdm_data.fitting.nuclei import Nuclei
from bvdm_data.fitting.video import Video
from bvdm_data.synth.model import Model

Card = dict[str, object]  # entries of the card of a model: JSON values


def describe_data(source: CTCSequence, video: Video, nuclei: Nuclei) -> Card:
    """Return the entry ``data``."""
    return {
        "data_set": source.folder.resolve().name,
        "sequence": source.name,
        "truth": source.truth,
        "frames": len(video.frames),
        "size": list(source.shape),
        "tracks": len(video.tracks),
        "divisions": len(nuclei.lineage.daughters),
        "whole_cycles": len(nuclei.lineage.whole_cycles),
        "nuclei": len(nuclei.stage),
    }


def describe_statistics(model: Model, nuclei: Nuclei) -> Card:
    """Return a part of the entry ``measured``."""
    lives = model.lives
    return {
        "stages": {name: int((nuclei.stage == stage).sum()) for stage, name in enumerate(PHASES)},
        "cycle_hours_median": round(float(np.exp(lives.cycle[0])) * lives.minutes / 60, 2),
        "brightness_memory": round(lives.brightness_autocorrelation, 4),
        "brightness_shared": round(lives.brightness_sister_correlation, 4),
        **({"death_rate": round(lives.death_rate, 6)} if lives.death_rate else {}),
    }


def count_left_out(video: Video, nuclei: Nuclei, contours: Contours) -> dict[str, tuple[int, int]]:
    """Count what is left out of the fit, and of how many, by ``LEFT_OUT``."""
    crops = nuclei.crops
    seen, divisions = len(crops.track) + sum(crops.left_out.values()), len(nuclei.lineage.daughters)
    ragged = int((contours.iou < LEAST_OVERLAP).sum())
    counts = {name: (count, seen) for name, count in crops.left_out.items()}
    counts["nuclei_in_pieces"] = (crops.left_out["nuclei_in_pieces"] + ragged, seen)
    counts["divisions_not_whole"] = (divisions - len(nuclei.references), divisions)
    counts["frames_without_masks"] = (video.skipped, len(video.frames) + video.skipped)
    crowded = sum(not frame.is_clear for frame in video.frames)
    counts["frames_without_background"] = (crowded, len(video.frames))
    return counts
