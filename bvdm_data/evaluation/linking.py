"""Linking: a small Trackastra that learns from clips to link given masks to tracks with divisions.

It is scored on reference masks, so that segmentation plays no part and only the motion, the lives
and the divisions of the clips that it learned from count.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.clip import Clip
from bvdm_data.evaluation.clip_store import clip_digest
from bvdm_data.evaluation.extras import need
from bvdm_data.evaluation.link_windows import (
    FEATURES,
    NO_BAR,
    Window,
    clip_windows,
    load_trackastra,
    measured,
    quiet,
    soon_after,
    vary_window,
)
from bvdm_data.evaluation.tracker import linked
from bvdm_data.fitting.training import TrainingLog, TrainingSettings, purpose_of, train
from bvdm_data.randomness import stream

LINKER_TRAINING = TrainingSettings(steps=2400, batch=8, rate=5e-4, average=0.99)
"""Batch 8 as in Trackastra's example for this data set; the rest is ours, to fit two cores."""

DIVISION_WEIGHT = 20.0
"""Added weight in the loss of the links of a mother to her daughters (Trackastra)."""

RAW_WEIGHT = 0.01
"""Weight of the loss before the parental softmax (Trackastra)."""

HELD_OUT = 0.1
"""Share of the clips that is not trained on; our choice."""

TRIES = 1000
"""Draws of a window with a link in it before a training gives up; our choice."""


class Clips(Protocol):
    """A finite set of annotated clips, such as ``StoredClips``, a list or a data set."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int, /) -> Clip:
        """Return a clip with ``video``, ``masks`` and ``tracks``."""


@dataclass(frozen=True, kw_only=True)
class LinkerSettings:
    """The network and its training.

    Attributes:
        width: Channels of the transformer (128: 0.95 M weights).
        heads: Attention heads.
        layers: Layers of the encoder, and of the decoder.
        window: Frames that are looked at together, 6 as in Trackastra's example.
        reach: Nuclei that are further apart are not linked, pixels (Trackastra's default is 256;
            half of it holds all steps of this data set).
        training: Steps, batch in windows, rate, seed.
    """

    width: int = 128
    heads: int = 4
    layers: int = 3
    window: int = 6
    reach: int = 128
    training: TrainingSettings = field(default=LINKER_TRAINING)

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        if self.window < 2:
            raise ValueError(f"window must be at least 2 frames, got {self.window}")
        if self.layers < 1 or self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(
                "layers and heads must be at least 1 and width a multiple of 2 * heads, got "
                f"layers={self.layers}, heads={self.heads}, width={self.width}"
            )


@dataclass(frozen=True, eq=False)
class Linker:
    """A trained linker.

    Attributes:
        network: Trackastra's ``TrackingTransformer``, in evaluation mode.
        settings: What it was made with.
        log: Its losses.
    """

    network: nn.Module
    settings: LinkerSettings
    log: TrainingLog


def train_linker(
    clips: Clips, settings: LinkerSettings, *, checkpoint: Path, progress: bool = True
) -> Linker:
    """Train a Trackastra from scratch, on the CPU; the same call goes on after a kill.

    Trackastra: Gallusser and Weigert, ECCV 2024. Windows of the clips are turned, mirrored,
    zoomed and lit anew at random; the last tenth of the clips is held out.

    Args:
        clips: At least two clips of at least ``settings.window`` frames, with tracks. Their number
            and the first and the last one tell them from those of another training.
        settings: Network and training.
        checkpoint: Where to keep the state.
        progress: Show a progress bar.

    Returns:
        The linker.

    Raises:
        ModuleNotFoundError: If Trackastra is not installed.
        ValueError: If there are too few or too short clips, no nucleus is in two frames, or the
            checkpoint belongs to another training.
    """
    if len(clips) < 2:
        raise ValueError(f"clips must hold at least 2 (the last is held out), got {len(clips)}")
    training = settings.training
    network = _network(settings)
    windows_of = functools.cache(lambda number: clip_windows(clips[number], settings.window))
    known = len(clips) - max(1, int(len(clips) * HELD_OUT))

    def loss_at(model: nn.Module, step: int) -> Tensor:
        draws = stream(training.seed, "linker", "step", step)
        batch: list[Window] = []
        for _ in range(TRIES):
            windows = windows_of(int(torch.randint(known, (), generator=draws)))
            place = torch.rand((), generator=draws)
            if windows:
                chosen = windows[int(place * len(windows))]
                batch.append(vary_window(chosen, draws))
            if len(batch) == training.batch:
                return _loss(model, batch)
        raise ValueError("clips must show nuclei in two frames in a row, got hardly any")

    def held_out(model: nn.Module) -> float:
        found = [window for one in range(known, len(clips)) for window in windows_of(one)]
        parts = [found[start : start + 16] for start in range(0, len(found), 16)]
        return float(np.mean([float(_loss(model, part)) for part in parts])) if parts else 0.0

    purpose = purpose_of(
        "linker", settings.width, settings.heads, settings.layers, settings.window, settings.reach,
        training.batch, training.rate, training.average, training.seed, len(clips),
        clip_digest(clips[0]), clip_digest(clips[len(clips) - 1]),
    )  # fmt: skip
    log = train(
        network,
        loss_at,
        held_out,
        training,
        checkpoint=checkpoint,
        purpose=purpose,
        progress=progress,
    )
    return Linker(network.eval(), settings, log)


def link(
    linker: Linker, video: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Link the nuclei of a video, greedily from the surest link on, with divisions.

    Args:
        linker: A trained linker.
        video: Grey values ``[F, H, W]``.
        masks: Numbers of the nuclei in each frame, ``[F, H, W]``; only the outlines are used, not
            which number comes back in another frame.

    Returns:
        Masks ``[F, H, W]`` with the ids of tracks and the table ``[n, 4]`` of id, first frame,
        last frame and parent, both int32; a valid result of the Cell Tracking Challenge.

    Raises:
        ModuleNotFoundError: If Trackastra is not installed.
        ValueError: If video and masks are not ``[F, H, W]`` of one shape with F at least 2.
    """
    if video.shape != masks.shape or masks.ndim != 3 or len(masks) < 2:
        raise ValueError(
            "video and masks must be [F, H, W] of one shape with F at least 2, got "
            f"{video.shape} and {masks.shape}"
        )
    edges = []
    if masks.any():
        features = measured(video, masks)
        with quiet():
            windows = need("trackastra.data").build_windows(
                features, linker.settings.window, progbar_class=NO_BAR, as_torch=True
            )
            found = need("trackastra.model.predict").predict_windows(
                windows, features, linker.network, spatial_dim=2, progbar_class=NO_BAR
            )
            tracking = need("trackastra.tracking")
            reach = linker.settings.reach
            graph = tracking.build_graph(found["nodes"], found["weights"], max_distance=reach)
            solution = tracking.track_greedy(graph)
        nodes = {name: (int(at["time"]), int(at["label"])) for name, at in graph.nodes.items()}
        edges = [(nodes[source], nodes[target]) for source, target in solution.edges]
    return linked(masks, edges)


def _network(settings: LinkerSettings) -> nn.Module:
    model = load_trackastra().TrackingTransformer
    seed = stream(settings.training.seed, "linker", "weights").initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # No dropout: it would draw from the global random state.
        network: nn.Module = model(
            coord_dim=2,
            feat_dim=FEATURES,
            d_model=settings.width,
            nhead=settings.heads,
            num_encoder_layers=settings.layers,
            num_decoder_layers=settings.layers,
            dropout=0.0,
            feat_embed_per_dim=8,
            window=settings.window,
            spatial_pos_cutoff=settings.reach,
        )
    return network


def _loss(network: nn.Module, batch: list[Window]) -> Tensor:
    """Return the mean cross-entropy of the links, before and after the parental softmax."""
    packed = need("trackastra.data").collate_sequence_padding(batch)
    times, truth, absent = (
        packed["timepoints"].long(),
        packed["assoc_matrix"],
        packed["padding_mask"],
    )
    places = torch.cat([times.unsqueeze(2).float(), packed["coords"].float()], dim=2)
    logits = network(places, features=packed["features"].float(), padding_mask=absent)
    void = absent.unsqueeze(1) | absent.unsqueeze(2)
    logits = logits.masked_fill(void, 0)
    utils = need("trackastra.utils")
    losses = []
    for raw, true, time, gone in zip(logits, truth, times, void, strict=True):
        sure = utils.blockwise_causal_norm(raw, time, mode="quiet_softmax", mask_invalid=gone)
        loss = RAW_WEIGHT * F.binary_cross_entropy_with_logits(raw, true, reduction="none")
        loss = loss + F.binary_cross_entropy(sure, true, reduction="none")
        daughters = utils.blockwise_sum(true, time, dim=1)
        weight = 1 + true * torch.where(daughters > 1, DIVISION_WEIGHT, 1.0)
        counts = soon_after(time) & ~gone
        losses.append((loss * weight)[counts].mean())
    return torch.stack(losses).mean()
