"""Trackastra 0.5 with three of its faults mended, and folders that Trackastra itself loads.

All are in 0.5.6 (``trackastra/model/model.py``, ``model_parts.py``); its authors list the first two
as done for the version after. Each layer replaces what it adds to by its norm, so that no sum runs
through the network. ``PositionalEncoding`` drops ``cutoffs_start``, so that numbers such as the
mean grey meet frequencies up to 1, not up to 100; here each feature has frequencies for its own
range. And the first frame of a window is taken away from the places of its nuclei, too, which so
move by a pixel a frame. The frequencies are weights and travel with a checkpoint; the others are
code, which :func:`mend_trackastra` replaces after loading.
"""

import functools
import importlib.metadata
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bvdm_data.system import require

# Longest wave of each feature, about four times as long as nuclei differ: diameter, px; mean grey;
# the tensor of inertia, px^2; nearness to the border. Each further wave is a third as long.
_WAVES = (160.0, 4.0, 600.0, 600.0, 600.0, 600.0, 4.0)


def import_trackastra(module: str = "trackastra") -> Any:
    """Import a module of Trackastra; versions other than 0.5 are refused."""
    found = require("trackastra", "tracking") and importlib.metadata.version("trackastra")
    if found.split(".")[:2] != ["0", "5"]:
        raise ImportError(
            f"trackastra must be 0.5, whose layers, windows and features this knows, got {found}; "
            "pip install 'trackastra>=0.5,<0.6'"
        )
    return require(module, "tracking")


def make_transformer(*, pre_norm: bool, feature_frequencies: bool, **config: Any) -> nn.Module:
    """Make a ``TrackingTransformer`` of seven features, with the named faults mended."""
    network: nn.Module = import_trackastra("trackastra.model").TrackingTransformer(
        coord_dim=2, feat_dim=7, feat_embed_per_dim=8, **config
    )
    if feature_frequencies:
        for frequencies, wave in zip(network.feat_embed.freqs, _WAVES, strict=True):  # type: ignore[union-attr, arg-type]
            wanted = 4 / wave * 3.0 ** torch.arange(frequencies.numel())
            frequencies.data.copy_(wanted.view_as(frequencies))
    if pre_norm:
        _mend(network)
    return network


def save_transformer(network: nn.Module, folder: str | Path, **settings: str) -> None:
    """Write a folder that ``Trackastra.from_folder`` and :func:`mend_trackastra` read.

    Settings come back in ``train_args`` of the ``Trackastra``.
    """
    layer: Any = network.encoder[0]  # type: ignore[index]
    told = {"features": "wrfeat", "pre_norm": isinstance(layer, _PreNorm), **settings}
    network.save(folder)  # type: ignore[operator]
    # Trackastra reads YAML, of which JSON is a part.
    (Path(folder) / "train_config.yaml").write_text(json.dumps(told, indent=2) + "\n")


def mend_trackastra(model: Any) -> Any:
    """Make a loaded Trackastra compute what its checkpoint was trained with.

    A checkpoint of ``examples/train_trackastra.py`` was trained with layers whose sum runs through
    the network, and with places that do not depend on the frame. Trackastra 0.5 loads it without a
    word and computes something else; call this after loading. A checkpoint that was trained with
    Trackastra's own layers stays as it is.

    Args:
        model: A ``Trackastra``, for example from ``Trackastra.from_folder(folder)``.

    Returns:
        The same model, changed in place.

    Raises:
        ImportError: If Trackastra is not installed, or another version than 0.5.
        TypeError: If model is no ``Trackastra``.

    Examples:
        From a folder to tracks::

            model = mend_trackastra(Trackastra.from_folder(Path("linker"), device="cpu"))
            graph, masks = model.track(images, masks, mode="greedy")
    """
    if not isinstance(model, import_trackastra("trackastra.model").Trackastra):
        raise TypeError(
            f"model must be a Trackastra, got {type(model).__name__}; give "
            "Trackastra.from_folder(folder)"
        )
    if model.train_args.get("pre_norm"):
        _mend(model.transformer)
    return model


class _PreNorm(nn.Module):
    """Marks layers whose norms are within the branches, so that the sum itself is untouched."""


@functools.cache
def _make_layer(kind: type[nn.Module]) -> type[nn.Module]:
    """Make the mended kind of an encoder or a decoder layer; it has the same weights."""

    class Layer(_PreNorm, kind):  # type: ignore[misc, valid-type]
        def forward(
            self, x: Tensor, *others: Tensor, coords: Tensor, padding_mask: Tensor | None = None
        ) -> Tensor:
            layer: Any = self
            seen = layer.norm1(x)
            source = layer.norm2(others[0]) if others else seen
            places = coords if layer.positional_bias else None
            x = x + layer.attn(seen, source, source, coords=places, padding_mask=padding_mask)
            last = layer.norm3 if others else layer.norm2
            return x + cast(Tensor, layer.mlp(last(x)))

    return Layer


@functools.cache
def _make_network(kind: type[nn.Module]) -> type[nn.Module]:
    """Make the mended kind of the network; it has the same weights."""

    class Network(kind):  # type: ignore[misc, valid-type]
        def forward(
            self, coords: Tensor, features: Tensor | None = None, padding_mask: Tensor | None = None
        ) -> Tensor:
            times, places = coords[..., :1], coords[..., 1:]
            if padding_mask is not None:
                times = times.masked_fill(padding_mask[..., None], torch.inf)
            coords = torch.cat([coords[..., :1], places + times.amin(1, keepdim=True)], 2)
            return cast(Tensor, super().forward(coords, features, padding_mask))

    return Network


def _mend(network: nn.Module) -> None:
    if isinstance(network.encoder[0], _PreNorm):  # type: ignore[index]
        return
    for layer in (*network.encoder, *network.decoder):  # type: ignore[misc]
        layer.__class__ = _make_layer(cast(Hashable, type(layer)))
    network.__class__ = _make_network(cast(Hashable, type(network)))
