"""What a fit is told, and how long its parts take."""

from dataclasses import dataclass, replace

from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.fitting.denoiser import DENOISER_TRAINING, PAIRS, STUDENT_TRAINING
from bvdm_data.fitting.paper_networks import DDPM_TRAINING, FLOW_TRAINING
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.networks import UNetSettings
from bvdm_data.validate import Rule, as_int, check_fields, check_seed

NETWORKS = ("painter", "distilled", "texture", "flow")
# Seconds a unit on one core, for the HeLa video. Of reading and measuring, the unit is a pixel.
SECONDS = {
    "reading": 1e-7, "measuring": 5e-7, "painter": 0.25, "pairs": 0.016, "distilled": 0.065,
    "memory": 60.0, "flow": 0.45, "texture": 0.47,
}  # fmt: skip
# What a budget is spent on, after what does not train.
SHARES = {"painter": 0.6, "pairs": 0.12, "distilled": 0.28}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is fitted.

    Attributes:
        painter: Training of the denoiser, our recipe. Its seed becomes ``seed``.
        distilled: Training of the one-step student, our recipe. Its seed becomes ``seed``.
        pairs: Images that the denoiser renders for the student to learn from, at least 4. A
            quarter of them, at most 512, is held out.
        paper: Whether the networks of the paper's method are trained, too.
        texture: Training of the paper's DDPM, by the paper's recipe. Its seed becomes ``seed``.
        flow: Training of the paper's FlowNet, by the paper's recipe. Its seed becomes ``seed``.
        network: Size of the DDPM's U-Net.
        minutes: Time between two frames, in minutes; 30 in Fluo-N2DL-HeLa.
        pixel_size: Side of a pixel, micrometres, for the card; None: not known.
        border: Width in pixels of the band at the frame's edge without complete truth.
        budget: Minutes that all of it may take. Steps and pairs are cut down to it; how many there
            are depends on the machine. None: all of them.
        seed: Seed of everything.
        license: Of the video, for the card: what may be done with the model; None: not said.
        stop: Frame number after the last one that is used; None: all.
    """

    painter: TrainingSettings = DENOISER_TRAINING
    distilled: TrainingSettings = STUDENT_TRAINING
    pairs: int = PAIRS
    paper: bool = False
    texture: TrainingSettings = DDPM_TRAINING
    flow: TrainingSettings = FLOW_TRAINING
    network: UNetSettings = UNetSettings()  # noqa: RUF009  # frozen
    minutes: float = 30.0
    pixel_size: float | None = None
    border: int = DEFAULT_BORDER
    budget: float | None = None
    seed: int = 0
    license: str | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        above = Rule(float, above=0)
        given = replace(above, or_none=True)
        check_fields(self, minutes=above, pixel_size=given, budget=given)
        if self.budget is not None and self.paper:
            raise ValueError("budget has no time for the paper's method; leave out one of the two")
        # Plain ints, since the card is written as JSON; one seed for all parts.
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "pairs", as_int("pairs", self.pairs, least=4))
        object.__setattr__(self, "border", as_int("border", self.border, least=0))
        if not isinstance(self.license, str | None):
            raise TypeError(f"license must be words, or None, got {self.license!r}")
        if self.stop is not None:
            object.__setattr__(self, "stop", as_int("stop", self.stop))
            if self.stop < 2:
                raise ValueError(f"stop must leave at least 2 frames, got {self.stop}")
        for part in NETWORKS:
            object.__setattr__(self, part, replace(getattr(self, part), seed=self.seed))

    @property
    def share(self) -> float:
        """How much of the memory of textures is measured: less for a first look."""
        return 1.0 if self.budget is None else 0.25


def guess_seconds(settings: FitSettings, pixels: int, others: float = 0.0) -> dict[str, float]:
    """Return the parts of a fit with the seconds of each; ``others``: of all other parts."""
    counts = {"reading": pixels, "measuring": pixels, "pairs": settings.pairs}
    counts |= {name: getattr(settings, name).steps for name in NETWORKS}
    names = [*SECONDS][: None if settings.paper else -2]
    seconds = {name: SECONDS[name] * counts.get(name, 1) for name in names}
    if settings.budget is None:
        return seconds
    seconds["memory"] *= settings.share
    fixed = others + sum(seconds[name] for name in names if name not in SHARES)
    left = 60 * settings.budget - fixed
    return seconds | {
        name: min(seconds[name], max(share * left, 0)) for name, share in SHARES.items()
    }
