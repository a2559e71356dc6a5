import errno

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bvdm_data import files
from bvdm_data.files import open_atomic, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_whole_file_makes_the_file_and_its_folders(tmp_path):
    path = tmp_path / "deep" / "down" / "text.txt"
    with open_atomic(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_whole_file_takes_the_place_of_an_old_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old")
    with open_atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_whole_file_leaves_the_old_file_and_no_other_when_it_fails(tmp_path, error):
    path = tmp_path / "text.txt"
    path.write_text("old")

    def write_half():
        with open_atomic(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_whole_file_names_the_file_that_it_cannot_write(tmp_path):
    wanted = pytest.raises(OSError, match=r"cannot write .*text\.txt: No space left")
    with wanted as caught, open_atomic(tmp_path / "text.txt"):
        raise OSError(errno.ENOSPC, "No space left")
    assert caught.value.errno == errno.ENOSPC


def test_whole_file_refuses_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    refused = pytest.raises(OSError, match=r"cannot write .*folder")
    with refused, open_atomic(tmp_path / "folder") as temporary:
        temporary.write_text("text")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_whole_file_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("text")
    refused = pytest.raises(FileExistsError, match=r"cannot write .*name\.txt: File exists")
    with refused, open_atomic(tmp_path / "file" / "name.txt"):
        pass


def test_write_tensors_writes_what_can_be_read_back(tmp_path):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"made": "by a test"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_tensors_writes_the_same_bytes_again(tmp_path):
    for name in ("one", "other"):
        write_tensors(tmp_path / name, TENSORS, {"made": "by a test"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_write_tensors_leaves_the_old_file_when_the_writer_fails(tmp_path, monkeypatch):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {})
    before = path.read_bytes()

    def fail(tensors, place, metadata):
        place.write_bytes(before[: len(before) // 2])
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match=r"^cannot write .*tensors\.safetensors: No space left"):
        write_tensors(path, TENSORS, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
