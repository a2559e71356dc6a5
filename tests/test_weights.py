import errno
import functools
import json
import math
import os
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bvdm_data import files, weights
from bvdm_data.model_schema import build_model
from bvdm_data.synth.networks import UNet, UNetSettings

PARTS = ("shapes", "lives", "motion", "camera", "texture")
NETWORKS = ("painter", "distilled", "unet", "flownet")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(weights, "cache_folder", lambda: folder)
    monkeypatch.setattr(weights, "bundled_folder", lambda: tmp_path / "bundled")
    return folder


@pytest.fixture
def copy(tiny_model, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(tiny_model.read_bytes())
    return path


def test_model_reads_back_exactly(tiny_generator, tiny_model):
    found = weights.load(tiny_model)
    for name in PARTS:
        before, after = asdict(getattr(tiny_generator, name)), asdict(getattr(found, name))
        assert before.keys() == after.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)
            assert type(after[key]) is type(value)
            assert getattr(after[key], "dtype", None) == getattr(value, "dtype", None)
    for name in NETWORKS:
        before = getattr(tiny_generator, name).state_dict()
        after = getattr(found, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert found.unet.settings == tiny_generator.unet.settings
    assert found.painter.settings == tiny_generator.painter.settings
    assert found.card == tiny_generator.card == weights.read_card(tiny_model)
    names = set(load_file(tiny_model))
    assert {"shapes.mean", "lives.durations", "motion.density", "camera.streak"} <= names
    assert all(name.split(".")[0] in (*PARTS, *NETWORKS) for name in names)


def test_loaded_networks_are_frozen(tiny_model):
    found = weights.load(tiny_model)
    for network in (found.painter, found.unet, found.flownet):
        assert not network.training
        assert not any(value.requires_grad for value in network.parameters())
        assert {value.device.type for value in network.parameters()} == {"cpu"}
    x = torch.ones(1, 1, 16, 16)
    assert found.unet(x, torch.tensor([3])).isfinite().all()
    assert found.flownet(x, x).isfinite().all()
    bright, stage = torch.tensor([0.2]), torch.tensor([0])
    assert found.painter(x, torch.tensor([0.5]), x, bright, stage).isfinite().all()


def test_model_without_paper_networks_reads_back(tiny_generator, tmp_path):
    path = tmp_path / "lean.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), path)
    found = weights.load(path)
    assert (found.unet, found.flownet) == (None, None)
    before, after = tiny_generator.painter.state_dict(), found.painter.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(name.startswith(("unet.", "flownet.")) for name in load_file(path))
    weights.save(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_save_refuses_numbers_not_finite(tiny_generator, tmp_path):
    broken = replace(tiny_generator, camera=replace(tiny_generator.camera, field_width=np.nan))
    words = r"is not saved: camera\.field_width must be above 0 and at most 10000, got nan; give"
    with pytest.raises(ValueError, match=words):
        weights.save(broken, tmp_path / "broken.safetensors")
    motion = replace(tiny_generator.motion, step=np.array([np.nan, 3.0]))
    with pytest.raises(
        ValueError, match=r"not saved: motion\.step must be from 0 to 10000, got nan"
    ):
        weights.save(replace(tiny_generator, motion=motion), tmp_path / "broken.safetensors")
    for name in ("model", "model.pt", "model.safetensors.gz"):
        with pytest.raises(ValueError, match=rf"path must end in \.safetensors, got .*{name}'"):
            weights.save(tiny_generator, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_model_saves_to_same_bytes(tiny_generator, tiny_model, tmp_path):
    for model in (tiny_generator, weights.load(tiny_model)):
        weights.save(model, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == tiny_model.read_bytes()


def test_load_reads_a_file_once(tiny_model, monkeypatch):
    first = weights.load(tiny_model)
    monkeypatch.setattr(weights, "load_tensors", lambda *_: pytest.fail("read again"))
    assert weights.load(tiny_model) is first
    assert weights.load(str(tiny_model)) is first


def test_load_reads_changed_files_again(tiny_generator, copy):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = weights.load(copy)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    bigger = UNet(UNetSettings(channels=(8, 8, 16), middle=1))
    weights.save(replace(tiny_generator, unet=bigger), copy)
    assert weights.load(copy) is not first
    assert weights.load(copy).unet.settings.channels == (8, 8, 16)


def test_cached_models_have_names(cache, tiny_model, tmp_path):
    (cache / "mine.safetensors").write_bytes(tiny_model.read_bytes())
    assert weights.known_models() == {"mine": cache / "mine.safetensors"}
    assert weights.find_model("mine") == cache / "mine.safetensors"
    assert weights.load("mine").card["data"] == "made up"
    bundled = tmp_path / "bundled" / "mine.safetensors"
    bundled.parent.mkdir()
    bundled.touch()
    assert weights.find_model("mine") == bundled


def test_find_model_refuses_what_is_missing(cache):
    with pytest.raises(ValueError, match=r"no weights called 'hella'; there are: none\. Or give"):
        weights.find_model("hella")
    for name in ("mine", "hela"):
        (cache / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"called 'hella'; there are: 'hela', 'mine'\. Or give"):
        weights.find_model("hella")
    missing = cache / "missing.safetensors"
    for path in (missing, str(missing)):
        with pytest.raises(FileNotFoundError, match=r"no model file .*missing\.safetensors'; give"):
            weights.find_model(path)
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        weights.find_model(cache)
    for model in (None, 3, b"hela", ["hela"]):
        with pytest.raises(TypeError, match="model must be a name or the path of a file, got"):
            weights.find_model(model)


def test_load_refuses_damaged_files(copy):
    good, damaged = copy.read_bytes(), r"copy\.safetensors is damaged.*SHA-256.*fetch it again"
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    changed = [good.replace(rb"\"offset\": 32768", rb"\"offset\": 32769")]
    for name in ("shapes.modes", "motion.sisters", "painter.outlet.bias", "unet.outlet", "flownet"):
        tensor = next(key for key in header if key.startswith(name))
        content = bytearray(good)
        content[8 + length + header[tensor]["data_offsets"][0]] ^= 1
        changed.append(bytes(content))
    for content in changed:
        assert content != good
        copy.write_bytes(content)
        with pytest.raises(ValueError, match=damaged):
            weights.load(copy)
    for share in (0, 1e-5, 0.01, 0.5, 0.999):
        copy.write_bytes(good[: int(share * len(good))])
        with pytest.raises(ValueError, match=r"copy\.safetensors is damaged or no safetensors"):
            weights.load(copy)


# Tables whose last axis has one length in all models.
FIXED = ("shapes.mean", "shapes.modes", "shapes.counts", "lives.cycle", "lives.size", "motion.pace")
FIXED += ("shapes.innovation", "lives.mitoses", "motion.drift", "motion.sisters", "camera.streak")


OPTIONAL = ("longest_step",)  # may be null
WRONG = ("text", True, [1], {}, math.nan, math.inf, -1e9, -(10**9), 10**400)


def list_damages(tensors, header):
    """Yield the entry that is damaged first, and tensors and header of a file with one damage."""
    for section in header.keys() - {"format"}:
        for value in (7, "text", [1], None):
            if (section, value) != ("unet", None):
                yield section, tensors, {**header, section: value}
    for section, values in header.items():
        if section == "format":
            continue
        yield section, tensors, {key: value for key, value in header.items() if key != section}
        if not isinstance(values, dict) or section == "card":
            continue
        yield f"{section}.new is unknown", tensors, {**header, section: {**values, "new": 1}}
        may_miss = {"narrow", "death_rate", "label_shift", "mitosis_correlation"}
        for key in values.keys() - may_miss:
            entry = f"{section}.{key}"
            rest = {name: value for name, value in values.items() if name != key}
            yield f"{section}.{key} is missing", tensors, {**header, section: rest}
            for wrong in WRONG if key in OPTIONAL else (*WRONG, None):
                yield entry, tensors, {**header, section: {**values, key: wrong}}
    yield "new is unknown", tensors, {**header, "new": {}}
    yield "new.bias is unknown", {**tensors, "new.bias": torch.zeros(1)}, header
    yield r"(unet|flownet)\..* is unknown", tensors, {**header, "unet": None}
    yield "card.a.b must be finite", tensors, {**header, "card": {"a": {"b": math.nan}}}
    for size in ("0.5", -1, True):
        card = {"settings": {"pixel_size": size}}
        yield "card.settings.pixel_size must be", tensors, {**header, "card": card}
    nested = functools.reduce(lambda inner, _: [inner], range(20), [])
    yield "card.deep.0.* must be nested", tensors, {**header, "card": {"deep": nested}}


def list_damaged_tensors(tensors, header, every=64):
    for number, (name, tensor) in enumerate(tensors.items()):
        is_weight = name.split(".")[0] in NETWORKS
        if is_weight and number % every:
            continue
        yield f"{name} is missing", {key: tensors[key] for key in tensors if key != name}, header
        broken = [tensor.half(), tensor[None], torch.zeros(0, dtype=tensor.dtype)]
        if is_weight or name in FIXED:
            broken.append(tensor[..., :-1].contiguous())
        for value in (math.nan, math.inf, -math.inf, -1e9):
            if value != -1e9 or not (is_weight or name == "shapes.length"):
                broken.append(tensor.clone())
                broken[-1].view(-1)[-1] = value
        for wrong in broken:
            if not torch.equal(wrong, tensor):
                yield f"{name} must", {**tensors, name: wrong}, header


def read_parts(path):
    content = path.read_bytes()
    outer = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header = json.loads(outer["__metadata__"]["bvdm_data"])
    return load_file(path), header


@pytest.mark.parametrize("damages", [list_damages, list_damaged_tensors])
def test_damaged_entries_are_refused(tiny_model, damages):
    tensors, header = read_parts(tiny_model)
    for name in ("format", "digest", "card_digest"):
        header.pop(name)
    found = list(damages(tensors, header))
    assert len(found) > 200
    for entry, *damaged in found:
        with pytest.raises(ValueError, match=rf"^{entry}") as error:
            build_model(*damaged)
        assert len(str(error.value)) < 200


@pytest.mark.heavy
@pytest.mark.parametrize("damages", [list_damages, list_damaged_tensors])
def test_damages_of_shipped_model(tmp_path, damages):
    path = tmp_path / "damaged.safetensors"
    for entry, tensors, header in damages(
        *read_parts(weights.bundled_folder() / "hela.safetensors")
    ):
        save_file(tensors, path, {"bvdm_data": json.dumps(header)})
        words = rf"damaged\.safetensors is damaged: .*{entry}.*fetch it again$"
        with pytest.raises(ValueError, match=words):
            weights.load(path)


def test_special_and_huge_files_are_refused(cache, tmp_path):
    fifo, huge = cache / "pipe.safetensors", tmp_path / "huge.safetensors"
    os.mkfifo(fifo)
    (tmp_path / "folder.safetensors").mkdir()
    for model in (fifo, "pipe", tmp_path / "folder.safetensors"):
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"no (model file|weights called)"
        ):
            weights.load(model)
    with huge.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        ValueError, match=r"huge\.safetensors must be a file of at most 1\.1 GB; give"
    ):
        weights.load(huge)


def test_absurd_headers_are_refused(tmp_path):
    path = tmp_path / "absurd.safetensors"
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, " " * 2**20 + "{}", "{}}", ""):
        save_file({"weight": torch.zeros(3)}, path, {"bvdm_data": text})
        with pytest.raises(
            ValueError, match=r"absurd\.s.* damaged or no safetensors file"
        ) as error:
            weights.load(path)
        assert len(str(error.value)) < 500
    for content in (
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
    ):
        path.write_bytes(len(content).to_bytes(8, "little") + content + b" ")
        with pytest.raises(
            ValueError, match=r"absurd\.safetensors is damaged or no safetensors file"
        ):
            weights.load(path)


def test_equal_fits_have_one_digest(tiny_generator, tiny_model, tmp_path):
    again = tmp_path / "again.safetensors"
    weights.save(replace(tiny_generator, card={"painter": {"hours": 0.7}}), again)
    assert weights.model_digest(again) == weights.model_digest(tiny_model)
    weights.load(again, digest=weights.model_digest(tiny_model))
    tensors, header = read_parts(again)
    header["card"]["painter"]["hours"] = 0.8
    save_file(tensors, again, {"bvdm_data": json.dumps(header)})
    with pytest.raises(ValueError, match="not have the SHA-256 of its entry 'card_digest'"):
        weights.load(again)
    texture = replace(tiny_generator.texture, fresh=0.4)
    weights.save(replace(tiny_generator, texture=texture), again)
    assert weights.model_digest(again) != weights.model_digest(tiny_model)
    with pytest.raises(ValueError, match=r"again\.safetensors was replaced: its SHA-256 is .* was"):
        weights.load(again, digest=weights.model_digest(tiny_model))


def test_rate_of_death_is_optional(tiny_generator, tiny_model, tmp_path):
    path = tmp_path / "dying.safetensors"
    assert "death_rate" not in read_parts(tiny_model)[1]["lives"]
    assert weights.load(tiny_model).lives.death_rate == 0
    lives = replace(tiny_generator.lives, death_rate=0.01)
    weights.save(replace(tiny_generator, lives=lives), path)
    assert weights.load(path).lives.death_rate == 0.01
    with pytest.raises(ValueError, match=r"lives\.death_rate must be .* got 2"):
        weights.save(replace(tiny_generator, lives=replace(lives, death_rate=2.0)), path)


def test_older_files_are_read(tiny_model, tmp_path):
    tensors, header = read_parts(tiny_model)
    for name in ("format", "digest", "card_digest"):
        header.pop(name)
    header["motion"].pop("longest_step")
    layout = "bvdm-data generator 5"
    header |= {"format": layout} | weights._compute_digests(tensors, header, layout)
    path = tmp_path / "older.safetensors"
    save_file(tensors, path, {"bvdm_data": json.dumps(header)})
    motion = weights.load(path).motion
    assert motion.longest_step == 8 * motion.speed.scale * motion.speed.mitotic_ratio
    assert weights.model_digest(path) == header["digest"]


def test_writing_over_leaves_loaded_models(copy):
    painter = weights.load(copy).painter.state_dict()
    before = {name: value.clone() for name, value in painter.items()}
    with copy.open("r+b") as file:
        file.write(bytes(copy.stat().st_size))
    assert all(torch.equal(painter[name], value) for name, value in before.items())


class Burglar:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def test_load_refuses_foreign_files(tmp_path):
    path, tensors = tmp_path / "foreign.safetensors", {"weight": torch.zeros(3)}
    for text in (
        None,
        *(json.dumps({"format": f"bvdm-data generator {n}"}) for n in (1, 99)),
        "[1]",
    ):
        save_file(tensors, path, text and {"bvdm_data": text})
        with pytest.raises(ValueError, match=r"foreign.* holds no model of this library.*expected"):
            weights.load(path)
    for write in (
        lambda: save_file(tensors, path, {"bvdm_data": "{"}),
        lambda: path.write_bytes(pickle.dumps(Burglar())),
        lambda: torch.save(tensors, path),
    ):
        write()
        with pytest.raises(ValueError, match="is damaged or no safetensors file"):
            weights.load(path)


def test_save_on_full_disk_keeps_old(tiny_generator, copy, monkeypatch):
    before = copy.read_bytes()

    def fill_the_disk(tensors, place, metadata):
        place.write_bytes(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", fill_the_disk)
    with pytest.raises(OSError, match=r"cannot write .*copy\.safetensors: No space left"):
        weights.save(tiny_generator, copy)
    assert copy.read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]
    weights.load(copy)
