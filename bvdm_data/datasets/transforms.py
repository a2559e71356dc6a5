"""A user's transform, applied to a finished clip."""

import inspect
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, spatial
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from bvdm_data.clip import Clip, annotate_masks, pad_rows, split_gaps
from bvdm_data.rng import numpy_rng, torch_rng

Transform = Callable[[Any], Any]
"""Takes a clip and returns one; the transforms of torchvision.transforms.v2 are such."""


class TransformError(RuntimeError):
    """A transform has failed on a clip; the cause is the exception it is raised from."""


def list_required_keys(
    annotations: tuple[str, ...], transform: Transform | None
) -> tuple[str, ...]:
    """Return the annotations that a clip must have ahead of its transform."""
    if transform is None or not annotations or annotations == ("masks",):
        return annotations
    return tuple(dict.fromkeys(("masks", *annotations)))


def apply_transform(
    clip: Clip,
    transform: Transform | None,
    *,
    name: str = "the data set",
    seed: int | None = None,
    epoch: int = 0,
    annotations: Collection[str] | None = None,
) -> Clip:
    """Call the transform on a clip whose ``video`` and ``masks`` are tv_tensors.

    So torchvision.transforms.v2 moves both alike, masks without interpolation. Where it has moved
    pixels, the annotations follow: masks and tables are numbered anew from the masks, and ``flow``
    is carried along; see :func:`update_annotations`. A transform that returns something else than
    a mapping answers for its content itself.
    """
    if transform is None:
        return clip
    index = int(clip["index"])
    try:
        with _fork_random_states(seed, epoch, index, clip["video"].device):
            result = _call_transform(clip, transform)
    except Exception as error:
        raise TransformError(
            f"transform failed on clip {index} of epoch {epoch} of {name}: "
            f"{type(error).__name__}: {error}. To make the clip alone: videos.set_epoch({epoch}); "
            f"videos.clip({index}); set videos.transform = None first to see it untransformed"
        ) from error
    if isinstance(result, Mapping) and annotations is not None:
        hidden = "masks" not in annotations
        result = {key: value for key, value in result.items() if not (hidden and key == "masks")}
    return cast(Clip, result)


def _call_transform(clip: Clip, transform: Transform) -> Any:
    # Imported here: torchvision takes longer to import than the rest of the package.
    from torchvision import tv_tensors

    pass

    given = add_probe_planes(clip)
    given["video"] = tv_tensors.Video(clip["video"])
    if "masks" in clip:
        given["masks"] = tv_tensors.Mask(clip["masks"])
    result = transform(given)
    return update_annotations(clip, result) if isinstance(result, Mapping) else result


@contextmanager
def _fork_random_states(
    seed: int | None, epoch: int, index: int, device: torch.device
) -> Iterator[None]:
    """Lend the transform global random states of the clip's own."""
    if seed is None:
        yield
        return
    path = ("transform", epoch, index)
    before = random.getstate()
    # The legacy state is what transforms of other people draw from.
    numpy_before = np.random.get_state()  # noqa: NPY002
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            number = torch_rng(seed, *path).initial_seed()
            torch.default_generator.manual_seed(number)
            if cuda:
                torch.cuda.manual_seed(number)
            random.seed(number)
            np.random.set_state(_legacy_state(seed, path))  # noqa: NPY002
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def _legacy_state(seed: int, path: tuple[str | int, ...]) -> Any:
    return np.random.MT19937(numpy_rng(seed, *path).integers(2**63)).state


AFFINE = 1e-3
"""How far a map may leave its best affine fit and still count as affine, px (our choice)."""

CLOSE = 0.1
"""How close the search for where a point has gone must come, px (our choice)."""

FLAT = 0.02
"""Share of its mean area that a pixel must keep; less is a fold (our choice)."""

STEPS = 30
"""Most steps of a search; a handful is the rule."""

_TOO_LITTLE = "it leaves too little of the picture to follow flow; leave 'flow' out of annotations"

_FOLDED = (
    "it folds, mirrors or smears parts of the picture, where flow cannot follow; deform less, or "
    "leave 'flow' out of annotations"
)

ProbePlanes = npt.NDArray[np.float64]

_GEOMETRIC = (
    "horizontal_flip",
    "vertical_flip",
    "resize",
    "affine",
    "rotate",
    "pad",
    "crop",
    "perspective",
    "elastic",
    "center_crop",
    "resized_crop",
)


class CoordinatePlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``(y, x, 1)``, ``[3, H, W]`` float64, that geometric transforms move like an image.

    Photometric transforms leave them alone. Pixels from beyond the picture are 0.
    """


class LabelPlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``[n, H, W]`` that geometric transforms move exactly as they move masks.

    Photometric transforms and changes of dtype leave them alone. Pixels from beyond the picture
    are 0, whatever ``fill`` the user has chosen.
    """


def make_coordinate_planes(height: int, width: int, device: torch.device) -> CoordinatePlanes:
    """Return the planes of a picture that nothing has moved.

    ``(y, x, 1)``, ``[3, height, width]`` float64.
    """
    y = torch.arange(height, dtype=torch.float64, device=device)
    x = torch.arange(width, dtype=torch.float64, device=device)
    down, right = torch.meshgrid(y, x, indexing="ij")
    return CoordinatePlanes(torch.stack([down, right, torch.ones_like(down)]))


class CoordinateMap:
    """The map of a transform between pixels of the picture it got and of the one it gave."""

    # [2, 2] float64, how a short way (dy, dx) of the picture that the transform got lies in the
    # one it gave; None where the map is not affine
    linear: ProbePlanes | None

    def __init__(self, planes: Tensor) -> None:
        """Fit the map; see the class."""
        given = planes.as_subclass(Tensor).cpu().numpy()
        inside = given[2] > 1 - 1e-9
        self._fit(given, inside)
        # A resize clamps at the edge of the picture, half a pixel of the smaller scale deep.
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        stretch = np.linalg.svd(self._inverse, compute_uv=False)[0]
        sound = depth > 2 + stretch / 2
        if sound.sum() > inside.sum() / 4:
            inside = sound
            self._fit(given, inside)
        places = np.indices(inside.shape)[:, inside].astype(float)
        left = given[:2, inside] - self._affine(places)
        self.linear = None
        if np.abs(left).max() < AFFINE:
            self.linear = _snap(self._inverse)
            return
        # What is beyond the picture goes on as its nearest pixel inside.
        rest = np.zeros((2, *inside.shape))
        rest[:, inside] = left
        nearest = ndimage.distance_transform_edt(
            ~inside, return_distances=False, return_indices=True
        )
        self._rest = rest[:, nearest[0], nearest[1]]
        self._slopes = np.stack([np.stack(np.gradient(plane)) for plane in self._rest])
        jacobian = self._matrix[:, :, None] + self._slopes[:, :, inside]
        area = np.linalg.det(jacobian.transpose(2, 0, 1)) / np.linalg.det(self._matrix)
        if area.min() < FLAT:
            raise ValueError(_FOLDED)
        self._tree = spatial.cKDTree(given[:2, inside].T)
        self._places = places

    def moved(self, places: ProbePlanes, ways: ProbePlanes) -> ProbePlanes:
        """Return ways as they lie after the transform.

        ``(dy, dx)`` after it, ``[2, n]``.
        """
        if self.linear is not None:
            return self.linear @ ways
        wanted = self._source(places) + ways
        ends = self._search(places + self._inverse @ ways, wanted, newton=False)
        far = self._missed(ends, wanted)
        if far.any():  # where the picture is strongly deformed
            starts = self._places[:, self._tree.query(wanted[:, far].T)[1]]
            ends[:, far] = self._search(starts, wanted[:, far], newton=True)
            far = self._missed(ends, wanted)
        if far.any():
            raise ValueError(_FOLDED)
        return ends - places

    def _fit(self, given: ProbePlanes, inside: npt.NDArray[np.bool_]) -> None:
        """Fit the affine map that comes closest."""
        if not inside.any():
            raise ValueError(_TOO_LITTLE)
        places = np.indices(inside.shape)[:, inside].astype(float)
        self._mean = places.mean(axis=1, keepdims=True)
        design = np.vstack([places - self._mean, np.ones(places.shape[1])]).T
        fitted, _, rank, _ = np.linalg.lstsq(design, given[:2, inside].T, rcond=None)
        if rank < 3 or abs(np.linalg.det(fitted[:2])) < 1e-9:
            raise ValueError(_TOO_LITTLE)
        self._matrix, self._offset = fitted[:2].T, fitted[2][:, None]
        self._inverse = np.linalg.inv(self._matrix)

    def _affine(self, places: ProbePlanes) -> ProbePlanes:
        source: ProbePlanes = self._matrix @ (places - self._mean) + self._offset
        return source

    def _source(self, places: ProbePlanes) -> ProbePlanes:
        """Return where places after the transform were before it, ``[2, n]``."""
        return self._affine(places) + _sample(self._rest, places)

    def _search(self, places: ProbePlanes, wanted: ProbePlanes, newton: bool) -> ProbePlanes:
        """Return the places that were at ``wanted`` before the transform, as far as found.

        Steps go by the affine part, which will do where the rest is gentle, or by Newton's method.
        """
        for _ in range(STEPS):
            step = self._inverse @ (wanted - self._source(places))
            if newton:
                step = self._newton_step(places, wanted - self._source(places))
            places = places + step
            if np.abs(step).max(initial=0) < CLOSE / 100:
                break
        return places

    def _newton_step(self, places: ProbePlanes, missing: ProbePlanes) -> ProbePlanes:
        slopes = np.stack([_sample(pair, places) for pair in self._slopes])
        jacobian = (slopes + self._matrix[:, :, None]).transpose(2, 0, 1)
        # Beyond the picture there may be no inverse: steps are kept finite, and short.
        step: ProbePlanes = np.einsum("nij,jn->in", np.linalg.pinv(jacobian, rcond=1e-3), missing)
        step /= np.maximum(1, np.hypot(*step) / 4)
        return step

    def _missed(self, ends: ProbePlanes, wanted: ProbePlanes) -> npt.NDArray[np.bool_]:
        missed: npt.NDArray[np.bool_] = np.hypot(*(self._source(ends) - wanted)) > CLOSE
        return missed


def _sample(planes: ProbePlanes, places: ProbePlanes) -> ProbePlanes:
    return np.stack(
        [ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in planes]
    )


def _snap(matrix: ProbePlanes) -> ProbePlanes:
    """Free the matrix of a flip or a quarter turn from the error of the fit."""
    whole = np.round(matrix) + 0.0  # no -0.0
    return whole if np.abs(matrix - whole).max() < 1e-9 else matrix


def _register_kernels(name: str, kind: type, stand_in: Callable[[Tensor], Any]) -> None:
    """Let a geometric transform treat our planes as it treats an image or a mask."""
    functional = getattr(transforms, name)
    signature = inspect.signature(functional)

    @transforms.register_kernel(functional, kind)  # type: ignore[untyped-decorator]
    def kernel(planes: Tensor, *given: object, **named: object) -> Tensor:
        arguments = signature.bind(planes, *given, **named).arguments
        arguments.pop("fill", None)
        if kind is CoordinatePlanes:  # what gives back a plane that rises evenly as it is
            exact = {"interpolation": InterpolationMode.BILINEAR, "antialias": False}
            arguments |= {key: exact[key] for key in exact if key in signature.parameters}
        _, *rest = arguments
        result = functional(
            stand_in(planes.as_subclass(Tensor)), **{key: arguments[key] for key in rest}
        )
        wrapped: Tensor = tv_tensors.wrap(result.as_subclass(Tensor), like=planes)
        return wrapped


for _name in _GEOMETRIC:
    _register_kernels(_name, CoordinatePlanes, tv_tensors.Image)
    _register_kernels(_name, LabelPlanes, tv_tensors.Mask)


CARRIED, COORDINATES = "_carried", "_coordinates"
"""Keys of the planes that ride along."""

_TABLES = ("tracks", "stages", "boxes", "centroids")
_ADVICE = "move it by its tv_tensor type, as torchvision.transforms.v2 does"

_Masks = npt.NDArray[np.int32]


def add_probe_planes(clip: Mapping[str, Any]) -> dict[str, Any]:
    """Give the clip planes that tell afterwards what a transform has done."""
    if "masks" not in clip:
        if not any(key in clip for key in (*_TABLES, "flow")):
            return dict(clip)
        height, width = clip["video"].shape[-2:]
        return {**clip, COORDINATES: make_coordinate_planes(height, width, clip["video"].device)}
    masks = clip["masks"].as_subclass(Tensor)
    frames, height, width = masks.shape
    planes = [masks.new_ones((1, height, width)), masks]
    given = dict(clip)
    if "flow" in clip:
        planes.append(clip["flow"].reshape(2 * (frames - 1), height, width))
        given[COORDINATES] = make_coordinate_planes(height, width, masks.device)
    # Ids are at most max_cells: float32 holds them exactly.
    given[CARRIED] = LabelPlanes(torch.cat([plane.float() for plane in planes]))
    return given


def update_annotations(before: Clip, result: Mapping[str, Any]) -> dict[str, Any]:
    """Make the annotations true again after a transform.

    Where masks have been moved, ids count from 1 again in the order of their first frames, rows
    of ``tracks``, ``stages``, ``boxes`` and ``centroids`` follow, a nucleus that is out of the
    picture for a while goes on under a new id, and ``flow`` is that between the moved pixels.
    Beyond the edge of the old picture is background.
    """
    after = {key: _plain(value) for key, value in result.items()}
    carried, planes = after.pop(CARRIED, None), after.pop(COORDINATES, None)
    kept = [key for key in (*_TABLES, "flow") if key in after and key in before]
    if "masks" not in before and planes is not None and not _same(planes, before["video"]):
        raise ValueError(
            f"it moves pixels, which {kept or 'tables'} cannot follow without masks; add 'masks' "
            "to annotations"
        )
    if "masks" not in before or not (kept or "masks" in after):
        return after
    old = before["masks"]
    if "masks" not in after:
        raise ValueError(f"it must hand on 'masks', without which {kept[0]!r} cannot be checked")
    masks, own_values = _move_masks(old, after["masks"], carried, bool(kept))
    if masks is None:
        return after
    _check_sides(after, masks)
    untouched = masks.shape == old.shape and torch.equal(masks, old)
    still = planes is None or _same(planes, old)
    if untouched and still:
        return after
    renamed, table, ids = _relabel(masks, old, before)
    device = after["masks"].device
    if not own_values:
        after["masks"] = torch.from_numpy(renamed).to(device, after["masks"].dtype)
    for key, value in _tables(before, kept, renamed, table, ids).items():
        after[key] = value.to(device)
    if "flow" in kept:
        after["flow"] = _flow(before, after, carried, planes, renamed).to(device)
    return after


def _plain(value: object) -> Any:
    if isinstance(value, Tensor) and type(value) is not Tensor:
        return value.as_subclass(Tensor)
    return value


def _same(planes: Tensor, old: Tensor) -> bool:
    height, width = old.shape[-2:]
    unmoved = make_coordinate_planes(height, width, old.device).as_subclass(Tensor)
    return planes.shape == unmoved.shape and torch.equal(planes, unmoved)


def _move_masks(
    old: Tensor, new: Tensor, carried: Tensor | None, needed: bool
) -> tuple[Tensor | None, bool]:
    """Return the masks as moved, ids as before, and whether the user has put in other values.

    None where nothing else needs to agree with what the user has made of the masks.
    """
    # Without the planes, the transform has handed on only the keys that it knows.
    twin = old if carried is None else carried[1 : 1 + len(old)].to(old.dtype)
    if new.shape == twin.shape:
        ids = new.to(twin.dtype)
        if carried is not None:  # whatever the fill, beyond the picture is background
            ids = torch.where(carried[0] > 0.5, ids, 0)
        if torch.equal(ids, twin):
            return twin, False
        if _is_function(twin, new):
            return twin, True
    if new.ndim == 3 and len(new) == len(old) and not new.is_floating_point() and _known(new, old):
        return new.to(old.dtype), False
    if not needed:
        return None, True
    raise ValueError(f"it changes 'masks' so that the other annotations cannot follow; {_ADVICE}")


def _is_function(ids: Tensor, values: Tensor) -> bool:
    """Tell whether every id has one value in all its pixels, as ``masks > 0`` has."""
    _, codes = torch.unique(values, return_inverse=True)
    pairs = ids.long() * (int(codes.max()) + 1) + codes
    return len(torch.unique(pairs)) == len(torch.unique(ids))


def _known(new: Tensor, old: Tensor) -> bool:
    """Tell whether every frame shows only nuclei that it showed before."""
    return all(
        bool(
            torch.isin(
                torch.unique(one), torch.cat([torch.unique(other), other.new_zeros(1)])
            ).all()
        )
        for one, other in zip(new, old, strict=True)
    )


def _check_sides(after: Mapping[str, Any], masks: Tensor) -> None:
    video = after.get("video")
    if not isinstance(video, Tensor) or video.ndim < 3:
        return
    if video.shape[-2:] != masks.shape[-2:] or len(masks) not in video.shape[:-2]:
        raise ValueError(
            "it must move 'video' and 'masks' alike and keep all frames, got "
            f"{list(video.shape)} and {list(masks.shape)}; {_ADVICE}"
        )


def _relabel(
    masks: Tensor, old: Tensor, before: Clip
) -> tuple[_Masks, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    rows = before["tracks"].tolist() if "tracks" in before else []
    return split_gaps(masks.cpu().numpy(), {row[0]: row[3] for row in rows if row[0]})


def _tables(
    before: Clip,
    kept: list[str],
    renamed: _Masks,
    table: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
) -> dict[str, Tensor]:
    """Return the wanted tables for the new ids."""
    known = [before[key] for key in _TABLES if key in before]  # type: ignore[literal-required]
    if not known:
        return {}
    made = annotate_masks(renamed, table, kept, len(known[0]))
    if "stages" in kept:
        stages = before["stages"].cpu().numpy()[ids - 1]
        frame = np.arange(stages.shape[1])
        there = (table[:, 1:2] <= frame) & (frame <= table[:, 2:3])
        made["stages"] = pad_rows(np.where(there, stages, np.int8(-1)), len(known[0]), -1)
    return made


def _flow(
    before: Clip,
    after: Mapping[str, Any],
    carried: Tensor | None,
    planes: Tensor | None,
    renamed: _Masks,
) -> Tensor:
    """Return the flow between the moved pixels; what the user has moved is believed."""
    if after["flow"] is not before["flow"]:
        return torch.as_tensor(after["flow"])
    frames, height, width = renamed.shape
    as_masks = carried is not None and carried.shape[-2:] == (height, width)
    if as_masks and carried is not None:
        twin = carried[1 : 1 + frames].cpu().numpy()
        as_masks = np.array_equal(twin > 0, renamed > 0)
    if carried is None or planes is None or not as_masks:
        raise ValueError(
            f"it moves 'masks' but not 'flow'; {_ADVICE}, or leave 'flow' out of annotations"
        )
    flow = np.zeros((frames - 1, 2, height, width), np.float32)
    if renamed.any():
        ways = carried[1 + frames :].cpu().numpy().reshape(flow.shape).astype(np.float64)
        pixel_map = CoordinateMap(planes)
        for frame in range(frames - 1):
            here = renamed[frame]
            goes_on = np.isin(here, renamed[frame + 1]) & (here > 0)
            places = np.argwhere(goes_on).T.astype(np.float64)
            flow[frame][:, goes_on] = pixel_map.moved(places, ways[frame][:, goes_on])
    return torch.from_numpy(flow)
