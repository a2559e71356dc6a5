"""Download of data sets of the Cell Tracking Challenge."""

import re
import shutil
import zipfile
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from bvdm_data.files import open_atomic_folder

ADDRESS = "https://data.celltrackingchallenge.net"
"""Where the challenge keeps its data sets."""

DATA_SETS = (
    "BF-C2DL-HSC",
    "BF-C2DL-MuSC",
    "DIC-C2DH-HeLa",
    "Fluo-C2DL-Huh7",
    "Fluo-C2DL-MSC",
    "Fluo-N2DH-GOWT1",
    "Fluo-N2DH-SIM+",
    "Fluo-N2DL-HeLa",
    "PhC-C2DH-U373",
    "PhC-C2DL-PSC",
)
"""The challenge's 2D data sets."""

SPLITS = ("training", "test")
"""The two archives of a data set; only the one for training holds truth."""

TIMEOUT_SECONDS = 60


def fetch(
    name: str,
    directory: str | Path,
    split: str = "training",
    url: str | None = None,
    known_hash: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch a data set and unpack it, unless that has been done before.

    The archive is kept as ``<name>.zip``, an unfinished one as ``<name>.zip.part``, which the next
    call continues. The challenge publishes no checksums. So the sha256 of the first archive that
    unpacks well is written to ``<name>.zip.sha256``, and later downloads into this directory must
    have the same. The test split is stored under ``<name>-test``.

    Args:
        name: Name of the data set, for example ``"Fluo-N2DL-HeLa"``.
        directory: Where to put it; made if it is not there.
        split: ``"training"``, with truth, or ``"test"``, without.
        url: Address of the zip archive, which must hold one folder, called name. None: the
            challenge's own, for its 2D data sets.
        known_hash: sha256 the archive must have, 64 hexadecimal digits. None: see above.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The data set's folder, ``directory/<name>``, fit for :func:`read_sequence`.

    Raises:
        FileNotFoundError: If the server has no such file.
        ConnectionError: If the transfer fails; call again to continue it.
        TypeError: If name is not a string.
        ValueError: If name, split or known_hash is wrong, the archive has another checksum, or it
            is damaged or holds something else than the folder.
    """
    _check_arguments(name, split, url, known_hash)
    stored = name if split == "training" else f"{name}-test"
    folder = Path(directory)
    if (folder / stored).is_dir():
        return folder / stored
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{stored}.zip"
    note = folder / f"{archive.name}.sha256"
    expected = known_hash or (note.read_text().strip() if note.is_file() else None)
    _download(url or f"{ADDRESS}/{split}-datasets/{name}.zip", archive, expected, progress)
    _unpack(archive, name, folder / stored)
    note.write_text(pooch.file_hash(str(archive)) + "\n")
    return folder / stored


class ResumingDownloader:
    """A downloader for pooch that continues the unfinished file of an earlier call."""

    def __init__(self, part: Path, progress: bool) -> None:
        """Choose where the unfinished file lies."""
        self.part = part
        self.progress = progress

    def __call__(self, url: str, output_file: str | Path, pooch: object) -> None:
        """Fetch the file, from where the last call stopped if the server can."""
        try:
            while not self._transfer(url):
                self.part.unlink()
        except (requests.RequestException, ConnectionError) as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code in (404, 410):
                raise FileNotFoundError(f"{url} is not there ({error})") from error
            raise ConnectionError(
                f"could not fetch {url} ({error}); {self._count_bytes()} bytes are kept in "
                f"{self.part}, call again to continue"
            ) from error
        shutil.move(self.part, output_file)

    def _count_bytes(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _transfer(self, url: str) -> bool:
        """Append what is missing to the unfinished file; False if the file does not fit."""
        done = self._count_bytes()
        # "identity": ranges count the bytes of the file, not those of a compressed stream.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            is_partial = response.status_code == requests.codes.partial
            begins = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            too_long = response.status_code == requests.codes.requested_range_not_satisfiable
            if done and (too_long or (is_partial and not begins)):
                return False
            response.raise_for_status()
            # A server that knows no ranges answers 200 and sends the whole file.
            done = done if is_partial else 0
            rest = int(response.headers.get("Content-Length", 0))
            bar = tqdm(
                total=done + rest if rest else None, initial=done, desc=self.part.stem,
                disable=not self.progress, unit="B", unit_scale=True,
            )  # fmt: skip
            with bar, self.part.open("ab" if done else "wb") as file:
                for chunk in response.iter_content(2**14):
                    bar.update(file.write(chunk))
        if rest and self._count_bytes() != done + rest:
            raise ConnectionError(f"got {self._count_bytes()} of {done + rest} bytes")
        return True


def _check_arguments(name: str, split: str, url: str | None, known_hash: str | None) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a data set, got {name!r}")
    if not re.fullmatch(r"\w[\w+.-]*", name):
        raise ValueError(f"name must be the plain name of a folder, got {name!r}")
    if url is None and name not in DATA_SETS:
        names = ", ".join(DATA_SETS)
        raise ValueError(f"no data set called {name!r}; there are: {names}. Or give its url")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if known_hash is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", known_hash):
        raise ValueError(
            f"known_hash must be a sha256 of 64 hexadecimal digits, got {known_hash!r}"
        )


def _download(url: str, archive: Path, expected: str | None, progress: bool) -> None:
    """Fetch the archive unless it is there with the expected checksum."""
    downloader = ResumingDownloader(archive.with_name(archive.name + ".part"), progress)
    try:
        pooch.retrieve(
            url,
            known_hash=expected and f"sha256:{expected.lower()}",
            fname=archive.name,
            path=archive.parent,
            downloader=downloader,
        )
    except ValueError as error:
        raise ValueError(
            f"{url} has another sha256 than the expected {expected}; the file has been removed. "
            f"Call again, or, if the data set has been replaced, remove {archive.name}.sha256 or "
            f"give its known_hash ({error})"
        ) from error


def _unpack(archive: Path, name: str, target: Path) -> None:
    """Unpack the archive into a temporary folder, and move its folder to the target."""
    try:
        with zipfile.ZipFile(archive) as file, open_atomic_folder(target) as folder:
            members = file.namelist()
            for member in members:
                parts = re.split(r"[/\\]", member)
                if ".." in parts or parts[0] == "" or ":" in parts[0]:
                    raise ValueError(f"it holds a path that leads out of the folder, {member!r}")
            if not any(member.startswith(f"{name}/") for member in members):
                raise ValueError(f"it must hold a folder {name!r}, got {members[:3]}")
            file.extractall(folder.parent)
            (folder.parent / name).rename(folder)
    except (zipfile.BadZipFile, ValueError) as error:
        archive.unlink()
        raise ValueError(f"{archive} is damaged or unsafe and has been removed: {error}") from error
