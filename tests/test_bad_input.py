"""What a user may get wrong: one line each, with the words of the message that help."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from doors import Place
from PIL import Image
from safetensors.torch import save_file

from bvdm_data import (
    CameraScale,
    CTCVideos,
    FastSettings,
    MixedVideos,
    PaperSettings,
    ProceduralSettings,
    files,
)
from bvdm_data.datasets import fetch, tiff
from bvdm_data.datasets.ctc import read_sequence, write_sequence
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.viz.pictures import write_animation, write_contact_sheet
from bvdm_data.weights import load, save


@pytest.fixture
def place(tmp_path, tiny_ctc, tiny_model, tiny_generator, monkeypatch):
    data = shutil.copytree(tiny_ctc, tmp_path / "data")
    model = shutil.copy(tiny_model, tmp_path / "model.safetensors")
    return Place(tmp_path, data, model, tiny_generator, monkeypatch)


def nan_frame(width=160):
    return np.full((128, width), np.nan, np.float32)


FOUR = np.zeros((128, 160), np.uint16)
FILES = [
    ("a missing folder", lambda p: read_sequence(p.folder / "no", "01"), FileNotFoundError,
     r"no folder .*no; it should hold 01/t000\.tif.* bvdm-data fetch downloads"),
    ("a missing folder for clips", lambda p: CTCVideos(p.folder / "no"), FileNotFoundError,
     r"no folder .*no; it should hold"),
    ("a missing sequence", lambda p: p.read("07"), FileNotFoundError,
     r"no folder .*07; sequences there: \['01'\]"),
    ("a missing sequence to fit", lambda p: p.fit(sequence="07"), FileNotFoundError,
     r"no folder .*07; sequences there: \['01'\]"),
    ("an empty video", lambda p: ((p.data / "09").mkdir(), p.read("09")), FileNotFoundError,
     r"no frames \(t000\.tif, \.\.\.\) in .*09; sequences there: \['01'\]"),
    ("a gap in the frame numbers", lambda p: p.remove("01/t005.tif").real(), ValueError,
     r"numbered without a gap, got no frame 5 between t004\.tif and t006\.tif \(1 of 0 to "
     r"11 are missing\); add what is missing, remove what does not belong"),
    ("frames of another size", lambda p: p.frame().read().frame(3), ValueError,
     r"t003\.tif must have the size of the first frame, \(128, 160\) pixels, got \(128, 161\)"),
    ("masks of another size", lambda p: p.frame("01_GT/SEG/man_seg002.tif").read().masks(2),
     ValueError, r"man_seg002\.tif must have the size of the first frame.*got \(128, 161\)"),
    ("masks of another size in a clip",
     lambda p: p.frame("01_GT/SEG/man_seg002.tif").real(frames=12).clip(0), ValueError,
     r"man_seg002\.tif must have the size"),
    ("a float frame with NaN", lambda p: p.frame(image=nan_frame()).real(frames=12).clip(0),
     ValueError, r"t003\.tif must hold integers, got float32; save frames as uint8"),
    ("a float mask", lambda p: p.frame("01_GT/SEG/man_seg000.tif", nan_frame()).read().masks(0),
     ValueError, r"man_seg000\.tif must hold integers, got float32; save frames as uint8"),
    ("float frames to fit", lambda p: p.frame("01/t000.tif", nan_frame()).fit(), ValueError,
     r"t000\.tif must hold integers"),
    ("an RGB frame", lambda p: (tifffile.imwrite(p.data / "01/t003.tif", np.zeros((8, 8, 3), "u1"),
     photometric="rgb"), p.read().frame(3)), ValueError,
     r"t003\.tif must hold one grey image.*RGB"),
    ("a frame of 32 bits", lambda p: p.frame(image=FOUR.astype(np.int32)).read().frame(3),
     ValueError, r"t003\.tif must be uint8 or uint16, got int32; scale the counts"),
    ("signed frames", lambda p: p.frame(image=FOUR.astype(np.int16)).real(), ValueError,
     r"t003\.tif must be uint8 or uint16, got int16; add 32768 and save all as uint16"),
    ("a cut frame", lambda p: p.cut("01/t003.tif").read().frame(3), ValueError,
     r"t003\.tif is not a TIFF file or a damaged one .*; fetch it again"),
    ("a cut first frame", lambda p: p.cut("01/t000.tif", 0).real(), ValueError,
     r"t000\.tif is not a TIFF file or a damaged one"),
    ("a cut mask to fit", lambda p: p.cut("01_GT/SEG/man_seg006.tif").fit(), ValueError,
     r"man_seg006\.tif is not a TIFF file or a damaged one"),
    ("no masks", lambda p: p.remove("01_GT").real(), FileNotFoundError,
     r"no masks of truth='auto' for sequence '01' .*Segment some, or give truth=None to"),
    ("no masks to fit", lambda p: p.fit(truth=None), ValueError,
     r"masks in at least 2 frames to fit shapes and motion, got 0 among frames 0 to 11; give"),
    ("an unknown truth", lambda p: p.real(truth="gold"), ValueError,
     r"truth must be one of \('auto', 'ST', .*got 'gold'"),
    ("labels without a track", lambda p: p.table("3 0 7 0\n", "").read(truth="TRA").masks(0),
     ValueError, r"man_track000\.tif .*got label 3, which has no track in man_track\.txt"),
    ("a track without labels", lambda p: p.table("3 0 7 0", "3 0 9 0").read(truth="TRA").masks(8),
     ValueError, r"man_track008\.tif must hold every track .*got no label 3; where it "
     r"is hidden, give the track two ids, .* the second with the first as its parent"),
    ("a malformed man_track.txt", lambda p: p.table("3 0 7 0", "3 0 x 0").read(), ValueError,
     r"man_track\.txt, line 3: must be four whole numbers .*got '3 0 x 0'"),
    ("a missing parent", lambda p: p.table("4 6 11 2", "4 6 11 9").real(), ValueError,
     r"line 4: parent 9 of track 4 does not exist; add its row, or write 0 for none"),
    ("a parent that outlives its daughter", lambda p: p.table("2 0 5 0", "2 0 8 0").read(),
     ValueError, r"parent 2 must end before track 4 begins in frame 6, got its last frame 8; end "
     r"it earlier, or write 0"),
    ("no tracks to fit", lambda p: p.remove("01_GT/TRA/man_track.txt").fit(), ValueError,
     r"has no man_track\.txt: .*lives, divisions and motion cannot; track .*or give link=True"),
    ("masks in one frame to fit", lambda p: (shutil.copy(p.remove("01_GT/SEG").data
     / "01_GT/TRA/man_track004.tif", p.folder_of("01_ST/SEG") / "man_seg004.tif"), p.fit()),
     ValueError, r"at least 2 frames to fit shapes and motion, got 1 among frames 0 to 11; give"),
    ("an unknown model to start from", lambda p: p.fit(start_from="hella"), ValueError,
     r"no weights called 'hella'; there are: "),
    ("one frame to fit", lambda p: p.fit(settings=FitSettings(stop=1)), ValueError,
     r"stop must leave at least 2 frames, got 1"),
    ("a model of another suffix to fit", lambda p: fit(p.data, p.folder / "m.pt"), ValueError,
     r"output must end in \.safetensors, got .*m\.pt'"),
    ("a scale that is none to fit", lambda p: p.fit(scale=(0, 255)), TypeError,
     r"scale must be a CameraScale or None, got \(0, 255\)"),
    ("a licence that is no text to fit", lambda p: FitSettings(license=3), TypeError,
     r"license must be words, or None, got 3"),
    ("a seed that is none to fit", lambda p: FitSettings(seed="one"), TypeError,
     r"seed must be a whole number, got 'one'"),
    ("NaN to turn into counts", lambda p: CameraScale(0, 255).to_counts(np.array([0.5, np.nan])),
     ValueError, r"grey must hold numbers from 0 to 1, got 1 NaN of 2"),
    ("whole numbers to turn into counts", lambda p: CameraScale(0, 255).to_counts(FOUR), TypeError,
     r"grey must be of a floating dtype in \[0, 1\], got uint16"),
    ("a scale the wrong way round", lambda p: CameraScale(255, 0), ValueError,
     r"0 <= offset < full <= 65535, got offset=255 and full=0"),
    ("a scale of floats", lambda p: CameraScale(0.0, 1.0), TypeError,
     r"offset must be an int \(a count of the camera\), got 0\.0"),
    ("a sequence over another", lambda p: write_sequence(p.data, "01", FOUR[None], FOUR[None],
     np.zeros((0, 4), int)), FileExistsError, r"01 is there already; .*another name than '01'"),
]  # fmt: skip

SYNTHETIC = [
    ("size zero", {"size": 0}, ValueError, r"size must be 1 or more, got 0"),
    ("size negative", {"size": (64, -64)}, ValueError, r"size must be 1 or more, got -64"),
    ("size float", {"size": 64.0}, TypeError, r"size must be \(height, width\) .*got 64\.0"),
    ("size of three", {"size": (8, 64, 64)}, ValueError, r"two numbers, .*got \(8, 64, 64\)"),
    ("size a string", {"size": "64x64"}, TypeError, r"size must be \(height.*got '64x64'"),
    ("size below a nucleus", {"size": (9, 64)}, ValueError,
     r"smaller than a nucleus of the model \(\d+ px across\), got \(9, 64\)"),
    ("frames zero", {"frames": 0}, ValueError, r"frames must be 1 or more, got 0"),
    ("frames a bool", {"frames": True}, TypeError, r"frames must be a whole number, got True"),
    ("frames a float", {"frames": 8.0}, TypeError, r"frames must be a whole number, got 8\.0"),
    ("length negative", {"length": -1}, ValueError, r"length must be 1 or more, got -1"),
    ("seed a string", {"seed": "0"}, TypeError, r"seed must be a whole number, got '0'"),
    ("length beyond all", {"length": 2**70}, ValueError, r"length must be \d+ or less"),
    ("jumps beyond all", {"jumps": (0.5, 1e308), "frames": 4}, ValueError, r"at most 10000 px"),
    ("frames of hours", {"minutes": 2400, "frames": 10}, ValueError,
     r"frames must be at most 1, 8 cell cycles of the model, got 10"),
    ("minutes beyond all", {"minutes": 3e8, "frames": 2}, ValueError,
     r"minutes between frames must be less than 8 cell cycles of the model, got 300000000"),
    ("seed negative", {"seed": -3}, ValueError, r"seed must be 0 or more, got -3"),
    ("nuclei negative", {"nuclei": -1}, ValueError, r"nuclei must be 0 or more, got -1"),
    ("nuclei reversed", {"nuclei": (9, 3)}, ValueError, r"low <= high, got \(9, 3\)"),
    ("nuclei of three", {"nuclei": (1, 2, 3)}, ValueError, r"a pair \(low, high\), got \(1, 2, 3"),
    ("nuclei that do not fit", {"nuclei": 120}, ValueError,
     r"nuclei=120 do not fit into size=\(64, 64\): only \d+ do in every clip\. Give fewer"),
    ("nuclei above max_cells", {"nuclei": 4, "max_cells": 3}, ValueError,
     r"max_cells=3 is too small .* they may show \d+ nuclei\. Give max_cells=\d+ or more, or"),
    ("too few rows for the density", {"size": 128, "max_cells": 2}, ValueError,
     r"max_cells=2 is too small .* they may show \d+ nuclei\. Give max_cells=\d+ or more, or"),
    ("at_least with nuclei", {"nuclei": 2, "at_least": 1}, ValueError,
     r"at_least must be left out with nuclei=2, got 1; .* give a pair of nuclei"),
    ("at_least that do not fit", {"at_least": 120}, ValueError,
     r"at_least=120 do not fit into size=\(64, 64\): only \d+ do in every clip"),
    ("at_least negative", {"at_least": -1}, ValueError, r"at_least must be 0 or more, got -1"),
    ("death_rate of a percentage", {"death_rate": 2}, ValueError,
     r"death_rate must be from 0 to 1, got 2"),
    ("death_rate a string", {"death_rate": "0.1"}, TypeError,
     r"death_rate must be a number from 0 to 1, got '0\.1'"),
    ("frames of many cell cycles", {"frames": 9999}, ValueError,
     r"frames must be at most \d+, 8 cell cycles of the model, got 9999"),
    ("max_cells zero", {"max_cells": 0}, ValueError, r"max_cells must be 1 or more, got 0"),
    ("an unknown annotation", {"annotations": ("mask",)}, ValueError,
     r"annotations must be out of \('masks', .*got 'mask'"),
    ("annotations a string", {"annotations": "masks"}, TypeError,
     r"'all' or a collection of names, got the string 'masks'; write \('masks',\)"),
    ("annotations None", {"annotations": None}, TypeError,
     r"annotations must be a collection of names, got None; write \(\) for none"),
    ("size an array of floats", {"size": np.array([64.0, 64.0])}, TypeError,
     r"size must be a whole number, got 64\.0"),
    ("size a table", {"size": np.zeros((2, 2), int)}, TypeError,
     r"size must be a whole number, got \[0, 0\]"),
    ("an unknown method", {"method": "magic"}, ValueError,
     r"of 'fast', 'paper', 'procedural', or FastSettings, PaperSettings or Proc.*, got 'magic'"),
    ("a method of a wrong type", {"method": 200}, TypeError,
     r"method must be a name, FastSettings, PaperSettings or ProceduralSettings, got 200"),
    ("variation below zero", {"variation": -1}, ValueError,
     r"variation must be from 0 to 1, got -1"),
    ("variation of NaN", {"variation": float("nan")}, ValueError,
     r"variation must be from 0 to 1, got nan"),
    ("variation a string", {"variation": "wide"}, TypeError,
     r"variation must be a number from 0 to 1, got 'wide'"),
    ("an unknown part of variation", {"variation": {"hase": 1}}, ValueError,
     r"variation must name some of size, brightness, .*, haze, debris, got 'hase'"),
    ("a part of variation above one", {"variation": {"haze": 2}}, ValueError,
     r"variation of haze must be from 0 to 1, got 2"),
    ("a part of variation that is no number", {"variation": {"haze": None}}, TypeError,
     r"variation of haze must be a number from 0 to 1, got None"),
    ("an unknown model", {"model": "hella"}, ValueError,
     r"no weights called 'hella'; there are: .*\"bvdm-data fit\""),
    ("a missing model file", {"model": "no/model.safetensors"}, FileNotFoundError,
     r"no model file 'no/model\.safetensors'; give the path of a file made by"),
    ("a model of a wrong type", {"model": 3}, TypeError, r"a name or the path of a file, got 3"),
    ("a pair of nuclei that do not fit", {"nuclei": (3, 200)}, ValueError,
     r"nuclei=\(3, 200\) do not fit into size=\(64, 64\): only \d+ do in every clip"),
    ("nuclei a float", {"nuclei": 2.5}, TypeError, r"nuclei must be a whole number, got 2\.5"),
    ("a device of a wrong type", {"device": 1.5}, ValueError, r"that torch knows, got 1\.5"),
    ("an unknown device", {"device": "gpu"}, ValueError,
     r"device must be one that torch knows, got 'gpu'"),
    ("CUDA without CUDA", {"device": "cuda"}, ValueError,
     r"device='cuda' asks for CUDA, but torch finds none; use device='cpu'"),
    ("a transform that cannot be called", {"transform": 3}, TypeError,
     r"transform must be a callable that takes a clip, got 3"),
]  # fmt: skip

CLIPS = [
    ("more real nuclei than max_cells", lambda p: p.real(frames=12, size=108, max_cells=1).clip(0),
     ValueError, r"max_cells=1 is too small for this clip: it holds \d nuclei"),
    ("no steps of the fast method", lambda p: p.synthetic(method=FastSettings(steps=0)),
     ValueError, r"steps must be from 1 to 1000, got 0"),
    ("steps of the fast method as a float", lambda p: p.synthetic(method=FastSettings(steps=6.0)),
     TypeError, r"steps must be an int, got 6\.0"),
    ("a memory of the fast method out of range", lambda p: FastSettings(memory=1.5), ValueError,
     r"memory must be from 0 to 1, got 1\.5"),
    ("a fresh share that is no number", lambda p: FastSettings(fresh="0.2"), TypeError,
     r"fresh must be a number or None, got '0\.2'"),
    ("the paper's method of a model without it", lambda p: (
        save(replace(p.generator, unet=None, flownet=None), p.folder / "lean.safetensors"),
        p.synthetic(model=p.folder / "lean.safetensors", method="paper")), ValueError,
     r"that the model was fitted for, got 'paper'; fit the model with \"bvdm-data fit --paper\""),
    ("procedural settings out of range", lambda p: p.synthetic(method=ProceduralSettings(memory=2)),
     ValueError, r"memory must be from 0 to 1, got 2"),
    ("a number where each stage needs one", lambda p: p.synthetic(
        method=ProceduralSettings(contrast=0.2)),
     TypeError, r"contrast must be a tuple of 6 numbers, one a stage, got 0\.2"),
    ("an epoch below zero", lambda p: p.synthetic().set_epoch(-1), ValueError,
     r"epoch must be 0 or more, got -1"),
    ("an index below zero", lambda p: p.synthetic().clip(-1), IndexError,
     r"index must be 0 or more, got -1"),
    ("an index beyond all", lambda p: p.synthetic().clip(2**63), IndexError,
     r"index must be 9223372036854775807 or less, got 9223372036854775808"),
    ("an epoch beyond all", lambda p: p.synthetic().set_epoch(2**63), ValueError,
     r"epoch must be 9223372036854775807 or less, got 9223372036854775808"),
    ("a float index", lambda p: p.synthetic().clip(1.0), TypeError,
     r"index must be a whole number, got 1\.0"),
    ("a real index beyond length", lambda p: p.real(length=3)[3], IndexError,
     r"index must be from -3 to 2, got 3; use clip\(index\) for the endless series"),
    ("a real window larger than the field", lambda p: p.real(size=(64, 150)), ValueError,
     r"field of interest of \(108, 140\) pixels .*got \(64, 150\); give a smaller size or border"),
    ("more real frames than there are", lambda p: p.real(frames=13), ValueError,
     r"frames must be at most the 12 frames in use, got 13"),
    ("flow of a real video", lambda p: p.real(annotations=("masks", "flow")), ValueError,
     r"annotations of a real video must be out of .*got 'flow': it has no truth for that"),
    ("masks without truth", lambda p: p.real(truth=None), ValueError,
     r"annotations must be \(\) when truth is None, got \('masks', 'tracks'\)"),
    ("a real scale that is none", lambda p: p.real(scale=4095), TypeError,
     r"scale must be a CameraScale or None, got 4095"),
    ("steps as a float", lambda p: PaperSettings(first_steps=20.0), TypeError,
     r"first_steps must be an int, got 20\.0"),
    ("no first steps", lambda p: PaperSettings(first_steps=0), ValueError,
     r"first_steps must be from 1 to total_steps=1000, got 0"),
    ("more later than first steps", lambda p: PaperSettings(first_steps=5), ValueError,
     r"later_steps must be from 0 to first_steps=5, got 10"),
    ("NaN brightness", lambda p: PaperSettings(mask_level=float("nan")), ValueError,
     r"mask_level must be above 0 and at most 1, got nan"),
    ("weights of other names", lambda p: p.mixed(weights={"one": 1}), ValueError,
     r"weights must have the names of the sources, \['one', 'other'\], got \['one'\]"),
    ("a weight below zero", lambda p: p.mixed(weights={"one": 1, "other": -1}), ValueError,
     r"weights\['other'\] must be finite and at least 0, got -1"),
    ("weights of zero", lambda p: p.mixed(weights={"one": 0, "other": 0}), ValueError,
     r"weights must not all be 0; give at least one source a weight above 0"),
    ("a weight of NaN", lambda p: p.mixed(weights={"one": 1, "other": float("nan")}), ValueError,
     r"weights\['other'\] must be finite and at least 0, got nan"),
    ("a weight as a string", lambda p: p.mixed(weights={"one": 1, "other": "3"}), TypeError,
     r"weights\['other'\] must be a number, got '3'"),
    ("sources of other frames", lambda p: p.mixed(other={"frames": 3}), ValueError,
     r"the same frames: sources\['one'\] has 2, sources\['other'\] has 3; make both with the same"),
    ("sources of other sizes", lambda p: p.mixed(other={"size": 80}), ValueError,
     r"the same size: sources\['one'\] has \(64, 64\), sources\['other'\] has \(80, 80\)"),
    ("sources of other annotations", lambda p: p.mixed(other={"annotations": ()}), ValueError,
     r"the same annotations: sources\['one'\] has \('masks', 'tracks'\), .* has \(\)"),
    ("sources of other scales", lambda p: MixedVideos({"one": p.synthetic(frames=4),
     "real": p.real(scale=CameraScale(0, 255))}), ValueError, r"the same scale: .*full=255"),
    ("a source without clip()", lambda p: MixedVideos({"one": [1, 2]}), TypeError,
     r"sources\['one'\] must be a data set of clips, .*list has no 'clip'"),
    ("no source", lambda p: MixedVideos({}), ValueError, r"at least one data set, got none"),
]  # fmt: skip

MODELS = [
    ("a damaged model", lambda p: load(p.file("m.safetensors", p.model.read_bytes()[:-900])),
     ValueError, r"m\.safetensors is damaged or no safetensors file .*fetch it again"),
    ("a foreign model", lambda p: (save_file({"w": torch.zeros(1)}, p.folder / "f.safetensors"),
     load(p.folder / "f.safetensors")), ValueError,
     r"f\.safetensors holds no model of this library.*Give a file made by \"bvdm-data fit\""),
    ("a pickle as a model", lambda p: load(p.file("p.safetensors", pickle.dumps({"w": 1}))),
     ValueError, r"p\.safetensors is damaged or no safetensors file"),
    ("a checkpoint as a model", lambda p: p.synthetic(model=p.checkpoint()), ValueError,
     r"checkpoint\.safetensors is damaged or no safetensors file .*; fit it again with"),
    ("a model saved under another suffix", lambda p: save(p.generator, str(p.folder / "m.pt")),
     ValueError, r"path must end in \.safetensors, got .*m\.pt'"),
    ("a disk that is full for a model", lambda p: (p.full_disk(files, "save_file"),
     save(p.generator, p.folder / "m.safetensors")), OSError,
     r"cannot write .*m\.safetensors: No space left"),
    ("a disk that is full for a sequence",
     lambda p: p.full_disk(tiff, "write_image").export(), OSError,
     r"could not write the sequence .*01: .*No space left"),
    ("a disk that is full for a picture", lambda p: (p.full_disk(Image.Image, "save"),
     write_contact_sheet({"one": p.clip()}, p.folder / "x.png")), OSError,
     r"cannot write .*x\.png: No space left"),
    ("a sheet of another suffix", lambda p:
        write_contact_sheet({"one": p.clip()}, p.folder / "x.jpg"),
     ValueError, r"path must end in '\.png', got .*x\.jpg'"),
    ("an animation of another suffix", lambda p: write_animation(p.clip(), p.folder / "x.avi"),
     ValueError, r"path must end in .*'\.gif'.* got .*x\.avi'"),
    ("no sequence to export", lambda p: p.export(sequences=0), ValueError,
     r"sequences must be 1 or more, got 0"),
    ("too many sequences to export", lambda p: p.export(sequences=100), ValueError,
     r"sequences must be at most 99, got 100"),
    ("a foreign folder to export to", lambda p: ((p.folder / "exported").mkdir(),
     p.file("exported/mine.txt"), p.export()), ValueError,
     r"must be new, empty, or begun by the same call, .*exported holds something else; give"),
    ("other arguments for the same folder", lambda p: (p.export(), p.export(seed=5)), ValueError,
     r"was begun with seed=0, got 5; give the same arguments to continue, or another folder"),
    ("a picture that no nucleus fits into", lambda p: p.export(size=(6, 64)), ValueError,
     r"size must not be smaller than a nucleus .*got \(6, 64\)"),
    ("an unknown data set to fetch", lambda p: fetch.fetch("HeLa", p.folder), ValueError,
     r"no data set called 'HeLa'; there are: .*Fluo-N2DL-HeLa.*Or give its url"),
    ("a path as a name to fetch", lambda p: fetch.fetch("../HeLa", p.folder), ValueError,
     r"name must be the plain name of a folder, got '\.\./HeLa'"),
    ("a number as a name to fetch", lambda p: fetch.fetch(3, p.folder), TypeError,
     r"name must be the name of a data set, got 3"),
    ("an unknown split to fetch", lambda p: fetch.fetch("Fluo-N2DL-HeLa", p.folder, "all"),
     ValueError, r"split must be one of \('training', 'test'\), got 'all'"),
    ("a checksum that is none", lambda p: fetch.fetch("Fluo-N2DL-HeLa", p.folder, known_hash="ab"),
     ValueError, r"known_hash must be a sha256 of 64 hexadecimal digits, got 'ab'"),
]  # fmt: skip


def made(changes):
    return lambda place: place.synthetic(**changes)


SETTINGS = [(name, made(changes), error, words) for name, changes, error, words in SYNTHETIC]
EVERY = [*FILES, *SETTINGS, *CLIPS, *MODELS]


@pytest.mark.parametrize(
    ("call", "error", "words"), [case[1:] for case in EVERY], ids=[case[0] for case in EVERY]
)
def test_message_helps(place, call, error, words, caplog):
    if "CUDA" in words and torch.cuda.is_available():
        place.patch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=words) as info:
        call(place)
    assert "\n" not in str(info.value)
    assert not list(place.folder.glob("out.*"))
