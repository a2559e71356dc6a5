"""Nuclei that lie against each other: placed so, and as often as is asked for."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from rasters import label
from scipy import ndimage

from bvdm_data.synth.model import CONTACT, randomise_model
from bvdm_data.synth.motion import CONTACT_RANGE, simulate_colony
from bvdm_data.synth.placement import compute_mean_radius

SIZE = (160, 160)


@pytest.fixture
def lonely(tiny_motion):
    """Nuclei that keep a wide berth, and sisters that are far apart."""
    return replace(
        tiny_motion, closest=np.full(4, 1.1), sisters=np.array([[math.log(60), 0.01]] * 3)
    )


def founders(shapes, lives, motion, contact, seed=0):
    return simulate_colony(
        shapes, lives, motion, frames=1, size=SIZE, nuclei=8,
        generator=np.random.default_rng(seed), contact=contact,
    )  # fmt: skip


def share_touching(paths):
    """Return the share of the nuclei whose label has another within a pixel or two."""
    (labels,) = label(paths, 1, SIZE)
    names = np.unique(labels)[1:]
    near = [ndimage.binary_dilation(labels == name, iterations=2) for name in names]
    return np.mean(
        [np.isin(labels[around], (0, name)).all() for name, around in zip(names, near, strict=True)]
    )


def test_the_more_contact_the_more_nuclei_touch(tiny_shapes, tiny_lives, lonely):
    alone = [
        np.mean([share_touching(founders(tiny_shapes, tiny_lives, lonely, c, s)) for s in range(6)])
        for c in (0.0, 0.5, 1.0)
    ]
    assert alone[0] > alone[1] + 0.1 > alone[2] + 0.2


def test_nuclei_that_are_put_against_each_other_hide_little_of_each_other(
    tiny_shapes, tiny_lives, lonely
):
    for seed in range(6):
        paths = founders(tiny_shapes, tiny_lives, lonely, 1.0, seed)
        for one, other in itertools.combinations(paths, 2):
            distance = float(np.linalg.norm(one.centres[0] - other.centres[0]))
            # Outlines of the tiny model are no longer than 11 px and no narrower than 3.
            reach = sum(float(compute_mean_radius(path.cell.radii[0])) for path in (one, other))
            assert distance > 0.5 * CONTACT_RANGE[0] * reach


def test_without_contact_nothing_is_drawn_for_it(tiny_shapes, tiny_lives, lonely):
    again = founders(tiny_shapes, tiny_lives, lonely, 0.0)
    plain = simulate_colony(
        tiny_shapes, tiny_lives, lonely, frames=1, size=SIZE, nuclei=8,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert [path.centres.tolist() for path in again] == [path.centres.tolist() for path in plain]


def test_variation_draws_contact_up_to_its_most(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    def drawn(amount):
        models = (tiny_shapes, tiny_lives, tiny_motion, tiny_camera)
        return [
            randomise_model(*models, amount, np.random.default_rng(s)).contact for s in range(50)
        ]

    assert set(drawn(0.0)) == {0.0}
    assert 0.8 * CONTACT < max(drawn(1.0)) <= CONTACT
    assert max(drawn(0.5)) <= CONTACT / 2
