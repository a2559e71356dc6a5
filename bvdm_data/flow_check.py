"""Check of flow: what must hold between the flow of a clip and its masks."""

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import measure_boxes

FEWEST_PIXELS, FEWEST_NUCLEI = 100, 10
"""How many pixels, and steps of nuclei, flow is judged by at least (our choice)."""

STEADY = 0.1
"""By what share the area of a nucleus may change in a step in which its flow is judged (our
choice): one that changes more may be cut, by the edge that a transform has turned into the
picture."""

LOSS = 0.25
"""What share of its area a nucleus may lose in a step in which its pixels must meet it again (our
choice): one that loses more may be leaving."""

FARTHEST_FLOW = 1.0
"""How far the mean flow of a whole nucleus may be off the way of its centroid, px, in the median
over the clip (our choice); ``benchmarks/soak.py`` measures how far it is with all methods."""

Presence = npt.NDArray[np.bool_]


def check_flow(masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]) -> None:
    """Check that flow moves the nuclei of masks, and nothing else, to where they go.

    Args:
        masks: ``[F, H, W]``, ids from 1.
        flow: ``[F - 1, 2, H, W]``, finite.

    Raises:
        ValueError: Naming the rule that is broken.
    """
    for frame, step in enumerate(flow):
        moved = step.any(0)
        if moved[masks[frame] == 0].any():
            raise ValueError(
                f"flow must be 0 in the background, got a displacement in frame {frame}"
            )
        lost = masks[frame][moved & ~np.isin(masks[frame], masks[frame + 1])]
        if len(lost):
            raise ValueError(
                "flow must be 0 where a nucleus is not there in the next frame, got a "
                f"displacement of id {lost[0]} in frame {frame}"
            )
    _check_carried(masks, flow)


def flow_errors(
    masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Measure how far the mean flow of nuclei is off the ways of their centroids.

    Args:
        masks: ``[F, H, W]``, ids from 1.
        flow: ``[F - 1, 2, H, W]``.

    Returns:
        The larger of both axes in pixels, for every nucleus and step in which it touches neither
        the edge nor another nucleus, before and after, and keeps its area but for ``STEADY``.
    """
    count = int(masks.max())
    whole = _whole(masks, count)
    centroids = measure_boxes(masks, count)[1]
    areas = _areas(masks, count)
    steady = np.abs(np.diff(areas)) <= STEADY * areas[:, :-1]
    found = []
    for frame, step in enumerate(flow):
        flat = masks[frame].ravel()
        sums = [np.bincount(flat, one.ravel(), count + 1)[1:] for one in step]
        rows = np.flatnonzero(whole[:, frame] & whole[:, frame + 1] & steady[:, frame])
        mean = np.stack(sums, -1)[rows] / areas[rows, frame, None]
        way = centroids[rows, frame + 1] - centroids[rows, frame]
        found.append(np.abs(mean - way).max(-1, initial=0))
    return np.concatenate(found) if found else np.zeros(0)


def presence(masks: npt.NDArray[np.int32], count: int) -> Presence:
    """Tell in which frames nuclei are visible.

    Args:
        masks: ``[F, H, W]``, ids from 1 to at most count.
        count: Number of ids.

    Returns:
        ``[count, F]``.
    """
    present = np.zeros((count + 1, len(masks)), bool)
    for frame, mask in enumerate(masks):
        present[np.unique(mask), frame] = True
    return present[1:]


def _areas(masks: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Count the pixels of nuclei, ``[n, F]``."""
    return np.stack([np.bincount(mask.ravel(), minlength=count + 1)[1:] for mask in masks], -1)


def _check_carried(masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]) -> None:
    """Check that flow carries nuclei to where they are in the next frame."""
    frame, y, x = np.nonzero(masks[:-1])
    ids = masks[frame, y, x]
    down = np.rint(y + flow[frame, 0, y, x]).astype(np.int64)
    right = np.rint(x + flow[frame, 1, y, x]).astype(np.int64)
    areas = _areas(masks, int(masks.max()))
    stays = areas[ids - 1, frame + 1] >= (1 - LOSS) * areas[ids - 1, frame]
    inside = (down >= 0) & (down < masks.shape[1]) & (right >= 0) & (right < masks.shape[2])
    judged = np.flatnonzero(stays & inside)
    met = masks[frame[judged] + 1, down[judged], right[judged]] == ids[judged]
    if len(judged) >= FEWEST_PIXELS and met.mean() < 0.5:
        raise ValueError(
            "flow must carry most pixels of a nucleus to the same id in the next frame, got "
            f"{met.mean():.0%} of {len(judged)}"
        )
    off = flow_errors(masks, flow)
    if len(off) >= FEWEST_NUCLEI and np.median(off) > FARTHEST_FLOW:
        raise ValueError(
            f"flow must move whole nuclei as their centroids move, within {FARTHEST_FLOW} px in "
            f"the median, got {np.median(off):.2f} px"
        )


def _whole(masks: npt.NDArray[np.int32], count: int) -> Presence:
    """Tell where nuclei are visible and touch neither the edge nor another one, ``[n, F]``."""
    whole = presence(masks, count)
    for frame, mask in enumerate(masks):
        met = [mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            contact = (one != other) & (one > 0) & (other > 0)
            met += [one[contact], other[contact]]
        touched = np.concatenate(met)
        whole[touched[touched > 0] - 1, frame] = False
    return whole
