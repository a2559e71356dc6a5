import functools
import hashlib
import http.server
import io
import threading
import zipfile

import numpy as np
import pytest

from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.fetch import fetch


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve one file; with or without ranges; break off after some bytes."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        state = self.state
        asked = self.headers.get("Range")
        state["asked"].append(asked)
        if self.path != "/data.zip":
            self.send_error(404)
            return
        if state["status"] != 200:
            self.send_error(state["status"])
            return
        body = state["body"]
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state["ranges"] else 0
        if first >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and state["ranges"] else 200)
        if asked and state["ranges"]:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(
            body[first : first + state["breaks"].pop(0)] if state["breaks"] else body[first:]
        )


@pytest.fixture
def server(tiny_ctc):
    """Return a server on this machine that holds the tiny data set as a zip archive."""
    state = {"body": archive_of(tiny_ctc), "ranges": True, "breaks": [], "asked": [], "status": 200}
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, state)
    ) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state["url"] = f"http://127.0.0.1:{running.server_port}/data.zip"
        yield state
        running.shutdown()
        thread.join()


def archive_of(root):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(root.rglob("*.t*")):
            file.write(path, f"tiny/{path.relative_to(root)}")
    return buffer.getvalue()


def fetched(server, directory, **changes):
    arguments = {"url": server["url"], "progress": False} | changes
    return fetch("tiny", directory, **arguments)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_fetch_gives_a_folder_that_read_sequence_takes(server, tmp_path, tiny_video):
    folder = fetched(server, tmp_path / "new" / "place")
    assert folder == tmp_path / "new" / "place" / "tiny"
    np.testing.assert_array_equal(read_sequence(folder, "01").frame(3), tiny_video[0][3])
    assert names(folder.parent) == ["tiny", "tiny.zip", "tiny.zip.sha256"]


def test_fetch_asks_nobody_when_the_data_set_is_there(server, tmp_path):
    fetched(server, tmp_path)
    assert fetched(server, tmp_path) == tmp_path / "tiny"
    assert len(server["asked"]) == 1


def test_fetch_stores_the_test_split_beside_the_training_split(server, tmp_path):
    assert fetched(server, tmp_path, split="test") == tmp_path / "tiny-test"
    assert fetched(server, tmp_path) == tmp_path / "tiny"


def test_fetch_unpacks_a_whole_archive_again_without_a_download(server, tmp_path):
    fetched(server, tmp_path).rename(tmp_path / "gone")
    assert fetched(server, tmp_path).is_dir()
    assert len(server["asked"]) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_fetch_continues_a_transfer_that_broke_off(server, tmp_path, ranges):
    server.update(ranges=ranges, breaks=[20000])
    with pytest.raises(
        ConnectionError, match=r"16384 bytes are kept in .*tiny.zip.part, call again"
    ):
        fetched(server, tmp_path)
    assert names(tmp_path) == ["tiny.zip.part"]
    folder = fetched(server, tmp_path)
    assert server["asked"] == [None, "bytes=16384-"]
    assert (tmp_path / "tiny.zip").read_bytes() == server["body"]
    assert read_sequence(folder, "01").masks(3) is not None


def test_fetch_keeps_the_unfinished_file_when_the_server_is_busy(server, tmp_path):
    (tmp_path / "tiny.zip.part").write_bytes(server["body"][:500])
    server["status"] = 503
    with pytest.raises(ConnectionError, match=r"503 .*; 500 bytes are kept"):
        fetched(server, tmp_path)
    server["status"] = 200
    assert fetched(server, tmp_path).is_dir()
    assert server["asked"] == ["bytes=500-", "bytes=500-"]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_fetch_begins_anew_when_the_unfinished_file_is_not_shorter(server, tmp_path, extra):
    (tmp_path / "tiny.zip.part").write_bytes(bytes(len(server["body"])) + extra)
    assert fetched(server, tmp_path).is_dir()
    assert len(server["asked"]) == 2


def test_fetch_takes_the_right_checksum(server, tmp_path):
    digest = hashlib.sha256(server["body"]).hexdigest()
    assert fetched(server, tmp_path, known_hash=digest.upper()).is_dir()
    assert (tmp_path / "tiny.zip.sha256").read_text().strip() == digest


def test_fetch_refuses_a_wrong_checksum_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=f"another sha256 than the expected {'0' * 64}"):
        fetched(server, tmp_path, known_hash="0" * 64)
    assert names(tmp_path) == []


def test_fetch_refuses_an_archive_that_differs_from_the_first_one(server, tmp_path):
    fetched(server, tmp_path).rename(tmp_path / "gone")
    (tmp_path / "tiny.zip").unlink()
    server["body"] += b"x"
    with pytest.raises(ValueError, match=r"remove tiny.zip.sha256 or give its known_hash"):
        fetched(server, tmp_path)
    assert names(tmp_path) == ["gone", "tiny.zip.sha256"]


def test_fetch_refuses_an_address_that_is_not_there(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other.zip is not there \(404"):
        fetched(server, tmp_path, url=server["url"].replace("data", "other"))
    assert names(tmp_path) == []


def test_fetch_refuses_a_server_that_does_not_answer(tmp_path):
    with pytest.raises(ConnectionError, match=r"could not fetch http://127.0.0.1:1/.*0 bytes are"):
        fetch("tiny", tmp_path, url="http://127.0.0.1:1/data.zip", progress=False)


def test_fetch_refuses_an_unknown_name_and_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"no data set called 'HeLa'; there are: .*Fluo-N2DL-HeLa"):
        fetch("HeLa", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../out"}, "plain name of a folder, got '../out'"),
        ({"name": ".."}, "plain name of a folder"),
        ({"split": "validation"}, "split must be one of .*got 'validation'"),
        ({"known_hash": "abc"}, "64 hexadecimal digits, got 'abc'"),
    ],
)
def test_fetch_refuses_arguments_that_cannot_be(tmp_path, changes, words):
    arguments = {"name": "Fluo-N2DL-HeLa", "directory": tmp_path / "data"} | changes
    with pytest.raises(ValueError, match=words):
        fetch(**arguments)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "member", ["../evil.txt", "tiny/../../evil.txt", "/evil.txt", "..\\evil.txt"]
)
def test_fetch_refuses_an_archive_with_a_path_that_leads_out(server, tmp_path, member):
    buffer = io.BytesIO(server["body"])
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(member, "evil")
    server["body"] = buffer.getvalue()
    with pytest.raises(ValueError, match="a path that leads out of the folder"):
        fetched(server, tmp_path / "data")
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == []


def test_fetch_refuses_an_archive_without_the_folder(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("other/01/t000.tif", "")
    server["body"] = buffer.getvalue()
    with pytest.raises(ValueError, match=r"must hold a folder 'tiny', got \['other/01/t000.tif'\]"):
        fetched(server, tmp_path)
    assert names(tmp_path) == []


def test_fetch_refuses_a_damaged_archive_and_leaves_nothing(server, tmp_path):
    body = bytearray(server["body"])
    body[1000:1100] = bytes(100)
    server["body"] = bytes(body)
    with pytest.raises(
        ValueError, match=r"tiny.zip is damaged or unsafe and has been removed: Bad CRC"
    ):
        fetched(server, tmp_path)
    assert names(tmp_path) == []


def test_fetch_shows_a_progress_bar(server, tmp_path, capsys):
    fetched(server, tmp_path, progress=True)
    assert "tiny.zip: 100%" in capsys.readouterr().err
