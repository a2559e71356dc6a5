import errno
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bvdm_data import files
from bvdm_data.files import open_atomic, open_atomic_folder, prepare_output_dir, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_open_atomic_makes_file_and_folders(tmp_path):
    path = tmp_path / "deep" / "down" / "text.txt"
    for text in ("old", "new"):
        before = path.read_text() if path.exists() else None
        with open_atomic(path) as temporary:
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
            assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
        assert path.read_text() == text
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_failed_write_keeps_old_file(tmp_path, error):
    path = tmp_path / "text.txt"
    path.write_text("old")

    def write_half():
        with open_atomic(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert str(caught.value).endswith(f"cannot write {path}: No space left")
        assert caught.value.errno == errno.ENOSPC


def test_leftovers_of_killed_processes_go(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    host, path = socket.gethostname(), tmp_path / "text.txt"
    kept = [".text.txt.elsewhere.7.a.txt", f".text.txt.{host}.{os.getppid()}.a.txt"]
    for name in (*kept, f".text.txt.{host}.{done.pid}.a.txt"):
        (tmp_path / name).touch()
    with open_atomic(path) as temporary:
        temporary.touch()
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*kept, path.name])


def test_files_are_on_the_disk_first(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.fstat(handle).st_ino))
    with open_atomic(tmp_path / "text") as temporary:
        temporary.write_text("new")
        assert calls == []
    assert calls == [(tmp_path / "text").stat().st_ino, tmp_path.stat().st_ino]
    calls.clear()
    with open_atomic_folder(tmp_path / "data") as folder:
        folder.mkdir()
        (folder / "text").write_text("new")
    assert {path.stat().st_ino for path in (folder.parent.parent, tmp_path / "data/text")} <= {
        *calls
    }


def test_open_atomic_refuses_wrong_places(tmp_path):
    (tmp_path / "folder").mkdir()
    refused = pytest.raises(OSError, match=r"cannot write .*folder")
    with refused, open_atomic(tmp_path / "folder") as temporary:
        temporary.write_text("text")
    (tmp_path / "file").write_text("text")
    refused = pytest.raises(FileExistsError, match=r"cannot write .*name\.txt: File exists")
    with refused, open_atomic(tmp_path / "file" / "name.txt"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_open_atomic_folder_moves_whole_folders(tmp_path):
    def fail():
        with open_atomic_folder(tmp_path / "data") as folder:
            folder.mkdir()
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        fail()
    assert list(tmp_path.iterdir()) == []
    # What a killed process has left goes; the folder of another one that runs stays.
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left = [tmp_path / f".data.{socket.gethostname()}.{x}.a" for x in (done.pid, os.getppid())]
    for folder in left:
        folder.mkdir()
    with open_atomic_folder(tmp_path / "data") as folder:
        folder.mkdir()
        (folder / "text").write_text("all")
    assert (tmp_path / "data" / "text").read_text() == "all"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "data", left[1]])
    refused = pytest.raises(FileExistsError, match="data is there already; remove it or give")
    with refused, open_atomic_folder(tmp_path / "data"):
        pass


def test_output_dir_accepts_the_same_manifest(tmp_path):
    first, grown = {"seed": (1, 2), "clips": 4}, {"seed": (1, 2), "clips": 8}
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / ".part-1").touch()
    # Left by a process that was killed while it wrote the manifest.
    for name in (".bvdm_data-k3x.json", ".bvdm_data.json.elsewhere.7.k3x.json"):
        (folder / name).touch()
    refused = pytest.raises(ValueError, match="must be new, empty, or begun by the same call")
    with refused:
        prepare_output_dir(folder, first)
    assert prepare_output_dir(folder, first, remains=(".part-",)) is None
    assert prepare_output_dir(folder, first) == {"seed": [1, 2], "clips": 4}
    begun = prepare_output_dir(folder, grown, identity=lambda manifest: {"seed": manifest["seed"]})
    assert begun == {"seed": [1, 2], "clips": 4}
    with pytest.raises(ValueError, match="begun with clips=4, got 8; give the same arguments"):
        prepare_output_dir(folder, grown)
    with pytest.raises(ValueError, match="holds something else"):
        prepare_output_dir(folder, {**grown, "layout": "other"})


def test_write_tensors_is_whole_or_nothing(tmp_path, monkeypatch):
    path, other = tmp_path / "tensors.safetensors", tmp_path / "other"
    for place in (path, other):
        write_tensors(place, TENSORS, {"made": "by a test"})
    found, before = load_file(path), path.read_bytes()
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert path.stat().st_mode & 0o777 == 0o644
    assert before == other.read_bytes()

    def fail(tensors, place, metadata):
        place.write_bytes(before[: len(before) // 2])
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match=r"^cannot write .*tensors\.safetensors: No space left"):
        write_tensors(path, TENSORS, {})
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [other, path]
