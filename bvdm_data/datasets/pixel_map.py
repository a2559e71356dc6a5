"""Where a transform of torchvision takes the pixels: planes that ride along and tell afterwards."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, spatial
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

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

Planes = npt.NDArray[np.float64]

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


class Coordinates(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``(y, x, 1)``, ``[3, H, W]`` float64, that geometric transforms move like an image.

    Photometric transforms leave them alone. Pixels from beyond the picture are 0.
    """


class CarriedPlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``[n, H, W]`` that geometric transforms move exactly as they move masks.

    Photometric transforms and changes of dtype leave them alone. Pixels from beyond the picture
    are 0, whatever ``fill`` the user has chosen.
    """


def coordinates(height: int, width: int, device: torch.device) -> Coordinates:
    """Return the planes of a picture that nothing has moved.

    Args:
        height: Pixels down.
        width: Pixels across.
        device: Where the clip is.

    Returns:
        ``(y, x, 1)``, ``[3, height, width]`` float64.
    """
    y = torch.arange(height, dtype=torch.float64, device=device)
    x = torch.arange(width, dtype=torch.float64, device=device)
    down, right = torch.meshgrid(y, x, indexing="ij")
    return Coordinates(torch.stack([down, right, torch.ones_like(down)]))


class PixelMap:
    """The map of a transform between pixels of the picture it got and of the one it gave.

    Attributes:
        linear: ``[2, 2]`` float64, how a short way ``(dy, dx)`` of the picture that the transform
            got lies in the one it gave; None where the map is not affine.

    Args:
        planes: :class:`Coordinates` after the transform, ``[3, H', W']``.

    Raises:
        ValueError: If too little of the picture is left to tell, or parts of it are folded.
    """

    linear: Planes | None

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
            self.linear = _neat(self._inverse)
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

    def moved(self, places: Planes, ways: Planes) -> Planes:
        """Return ways as they lie after the transform.

        Args:
            places: Where they begin, ``(y, x)`` after the transform, ``[2, n]``.
            ways: ``(dy, dx)`` before the transform, ``[2, n]``.

        Returns:
            ``(dy, dx)`` after it, ``[2, n]``.

        Raises:
            ValueError: If the end of a way cannot be found.
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

    def _fit(self, given: Planes, inside: npt.NDArray[np.bool_]) -> None:
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

    def _affine(self, places: Planes) -> Planes:
        source: Planes = self._matrix @ (places - self._mean) + self._offset
        return source

    def _source(self, places: Planes) -> Planes:
        """Return where places after the transform were before it, ``[2, n]``."""
        return self._affine(places) + _sampled(self._rest, places)

    def _search(self, places: Planes, wanted: Planes, newton: bool) -> Planes:
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

    def _newton_step(self, places: Planes, missing: Planes) -> Planes:
        slopes = np.stack([_sampled(pair, places) for pair in self._slopes])
        jacobian = (slopes + self._matrix[:, :, None]).transpose(2, 0, 1)
        # Beyond the picture there may be no inverse: steps are kept finite, and short.
        step: Planes = np.einsum("nij,jn->in", np.linalg.pinv(jacobian, rcond=1e-3), missing)
        step /= np.maximum(1, np.hypot(*step) / 4)
        return step

    def _missed(self, ends: Planes, wanted: Planes) -> npt.NDArray[np.bool_]:
        missed: npt.NDArray[np.bool_] = np.hypot(*(self._source(ends) - wanted)) > CLOSE
        return missed


def _sampled(planes: Planes, places: Planes) -> Planes:
    return np.stack(
        [ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in planes]
    )


def _neat(matrix: Planes) -> Planes:
    """Free the matrix of a flip or a quarter turn from the error of the fit."""
    whole = np.round(matrix) + 0.0  # no -0.0
    return whole if np.abs(matrix - whole).max() < 1e-9 else matrix


def _register(name: str, kind: type, stand_in: Callable[[Tensor], Any]) -> None:
    """Let a geometric transform treat our planes as it treats an image or a mask."""
    functional = getattr(transforms, name)
    signature = inspect.signature(functional)

    @transforms.register_kernel(functional, kind)  # type: ignore[untyped-decorator]
    def kernel(planes: Tensor, *given: object, **named: object) -> Tensor:
        arguments = signature.bind(planes, *given, **named).arguments
        arguments.pop("fill", None)
        if kind is Coordinates:  # what gives back a plane that rises evenly as it is
            exact = {"interpolation": InterpolationMode.BILINEAR, "antialias": False}
            arguments |= {key: exact[key] for key in exact if key in signature.parameters}
        _, *rest = arguments
        result = functional(
            stand_in(planes.as_subclass(Tensor)), **{key: arguments[key] for key in rest}
        )
        wrapped: Tensor = tv_tensors.wrap(result.as_subclass(Tensor), like=planes)
        return wrapped


for _name in _GEOMETRIC:
    _register(_name, Coordinates, tv_tensors.Image)
    _register(_name, CarriedPlanes, tv_tensors.Mask)
