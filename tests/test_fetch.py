import functools
import hashlib
import http.server
import io
import os
import signal
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.fetch import fetch


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve one file, with or without ranges; stop after some bytes."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        state = self.state
        asked = self.headers.get("Range")
        state["asked"].append(asked)
        if self.path != "/data.zip" or state["status"] != 200:
            self.send_error(404 if self.path != "/data.zip" else state["status"])
            return
        body, is_partial = state["body"], bool(asked and state["ranges"])
        first = int(asked.removeprefix("bytes=").rstrip("-")) if is_partial else 0
        rest = body[first:]
        self.send_response((206 if rest else 416) if is_partial else 200)
        if is_partial:
            span = f"{first}-{len(body) - 1}" if rest else "*"
            self.send_header("Content-Range", f"bytes {span}/{len(body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: state["breaks"].pop(0)] if state["breaks"] else rest)


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


def fetch_tiny(server, directory, **changes):
    arguments = {"url": server["url"], "progress": False} | changes
    return fetch("tiny", directory, **arguments)


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".tiny.lock")


def test_fetch_returns_readable_folder(server, tmp_path, tiny_video, capsys):
    folder = fetch_tiny(server, tmp_path / "new" / "place", progress=True)
    assert folder == tmp_path / "new" / "place" / "tiny"
    np.testing.assert_array_equal(read_sequence(folder, "01").frame(3), tiny_video[0][3])
    assert names(folder.parent) == ["tiny", "tiny.zip", "tiny.zip.sha256"]
    assert "tiny.zip: 100%" in capsys.readouterr().err


def test_fetch_downloads_once(server, tmp_path):
    for _ in range(2):
        assert fetch_tiny(server, tmp_path) == tmp_path / "tiny"
    # The archive is unpacked again without a download.
    (tmp_path / "tiny").rename(tmp_path / "gone")
    assert fetch_tiny(server, tmp_path).is_dir()
    assert len(server["asked"]) == 1
    assert fetch_tiny(server, tmp_path, split="test") == tmp_path / "tiny-test"


def test_refused_download_keeps_nothing(server, tmp_path):
    server["status"] = 503
    with pytest.raises(ConnectionError, match=r"503 .*; call again$"):
        fetch_tiny(server, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_continues(server, tmp_path, ranges):
    server.update(ranges=ranges, breaks=[20000])
    with pytest.raises(
        ConnectionError, match=r"16384 bytes are kept in .*tiny.zip.part, call again"
    ):
        fetch_tiny(server, tmp_path)
    assert names(tmp_path) == ["tiny.zip.part"]
    folder = fetch_tiny(server, tmp_path)
    assert server["asked"] == [None, "bytes=16384-"]
    assert (tmp_path / "tiny.zip").read_bytes() == server["body"]
    assert read_sequence(folder, "01").masks(3) is not None


def test_unfinished_file_is_kept_or_dropped(server, tmp_path):
    part = tmp_path / "tiny.zip.part"
    part.write_bytes(server["body"][:500])
    server["status"] = 503
    with pytest.raises(ConnectionError, match=r"503 .*; 500 bytes are kept"):
        fetch_tiny(server, tmp_path)
    server["status"] = 200
    assert fetch_tiny(server, tmp_path).is_dir()
    assert server["asked"] == ["bytes=500-", "bytes=500-"]
    for extra in (b"", b"more"):
        folder = tmp_path / f"too long {len(extra)}"
        folder.mkdir()
        (folder / "tiny.zip.part").write_bytes(bytes(len(server["body"])) + extra)
        assert fetch_tiny(server, folder).is_dir()
        assert server["asked"].pop() is None


def test_leftovers_of_killed_call_go(server, tmp_path, monkeypatch):
    def die(self, folder):
        (folder / "tiny").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", die)
        killed = get_context("fork").Process(target=fetch_tiny, args=(server, tmp_path))
        killed.start()
        killed.join()
    assert [name.startswith(".tiny.") for name in names(tmp_path)] == [True, False]
    fetch_tiny(server, tmp_path)
    assert names(tmp_path) == ["tiny", "tiny.zip", "tiny.zip.sha256"]


def test_fetch_checks_the_known_hash(server, tmp_path):
    with pytest.raises(ValueError, match=f"another sha256 than the expected {'0' * 64}"):
        fetch_tiny(server, tmp_path, known_hash="0" * 64)
    assert names(tmp_path) == []
    digest = hashlib.sha256(server["body"]).hexdigest()
    assert fetch_tiny(server, tmp_path, known_hash=digest.upper()).is_dir()
    assert (tmp_path / "tiny.zip.sha256").read_text().strip() == digest
    with pytest.raises(ValueError, match=rf"known_hash={'0' * 64}, but tiny.zip.sha256 says .*rem"):
        fetch_tiny(server, tmp_path, known_hash="0" * 64)


def test_empty_folder_is_filled(server, tmp_path):
    (tmp_path / "tiny").mkdir()
    assert (fetch_tiny(server, tmp_path) / "01" / "t003.tif").is_file()


def test_changed_archive_is_refused(server, tmp_path):
    fetch_tiny(server, tmp_path).rename(tmp_path / "gone")
    (tmp_path / "tiny.zip").unlink()
    server["body"] += b"x"
    with pytest.raises(ValueError, match=r"remove tiny.zip.sha256 or give its known_hash"):
        fetch_tiny(server, tmp_path)
    assert names(tmp_path) == ["gone", "tiny.zip.sha256"]


def test_missing_address_is_refused(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other.zip is not there \(404"):
        fetch_tiny(server, tmp_path, url=server["url"].replace("data", "other"))
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1/.*refused.*; call again$"):
        fetch_tiny(server, tmp_path, url="http://127.0.0.1:1/data.zip")
    assert names(tmp_path) == []


def edit_archive(body, name, content=""):
    buffer = io.BytesIO(body)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *((lambda body, name=name: edit_archive(body, name), "a path that leads out of the folder")
          for name in ("../evil.txt", "tiny/../../evil.txt", "/evil.txt", "..\\evil.txt")),
        (lambda body: edit_archive(b"", "other/t000.tif"), r"must hold a folder .tiny., got"),
        (lambda body: body[:1000] + bytes(100) + body[1100:], "has been removed: Bad CRC"),
        (lambda body: body[:900], "has been removed: File is not a zip file"),
        (lambda body: spoil_deflated("tiny/t000.tif"), "has been removed: Error -3 while decom"),
        (lambda body: edit_archive(body, "tiny/01/t000.tif/x"), "has been removed: .*tiny/01/t000"),
        (lambda body: set_bytes(body, 10, b"\x63\0"), "has been removed: .*compression"),
        (lambda body: set_bytes(body, 8, b"\x01\0"), "has been removed: .*(crypt|password)"),
        (lambda body: set_bytes(body, 24, bytes(3) + b"\xff"), "would unpack to 42784"),
    ],
)  # fmt: skip
def test_damaged_archive_is_removed(server, tmp_path, spoil, words):
    good = server["body"]
    server["body"] = spoil(good)
    with pytest.raises(ValueError, match=words):
        fetch_tiny(server, tmp_path / "data")
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == []
    server["body"] = good
    assert fetch_tiny(server, tmp_path / "data").is_dir()


def spoil_deflated(name):
    """Return an archive whose only member is no deflated stream."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, bytes(range(256)) * 9)
    return set_bytes(buffer.getvalue(), 30 + len(name), b"\xff" * 9, b"PK\x03\x04")


def set_bytes(body, place, new, start=b"PK\x01\x02"):
    """Change bytes behind the first header of the archive's directory, or of a member."""
    place += body.index(start)
    return body[:place] + new + body[place + len(new) :]


def test_fetches_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: fetch_tiny(server, tmp_path), range(4)))
    assert folders == [tmp_path / "tiny"] * 4
    assert server["asked"] == [None]
    assert len(list((tmp_path / "tiny").rglob("*.t*"))) == len(
        zipfile.ZipFile(io.BytesIO(server["body"])).namelist()
    )
    assert names(tmp_path) == ["tiny", "tiny.zip", "tiny.zip.sha256"]


def test_incomplete_folder_is_refused(server, tmp_path):
    folder = fetch_tiny(server, tmp_path)
    (folder / "01" / "t003.tif").unlink()
    (folder / "01" / "t004.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 are missing or of another size: 01/t003\.tif, 01/t0"):
        fetch_tiny(server, tmp_path)
    folder.rename(tmp_path / "gone")
    assert fetch_tiny(server, tmp_path) == folder
    (folder / "01" / "t003.tif").unlink()
    (tmp_path / "tiny.zip").unlink()
    assert fetch_tiny(server, tmp_path) == folder
