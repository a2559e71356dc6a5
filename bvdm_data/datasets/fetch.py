"""Download of data sets of the Cell Tracking Challenge."""

import hashlib
import re
import zipfile
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

from bvdm_data.files import cut_words, open_atomic, open_atomic_folder, refuse_damage

ADDRESS = "https://data.celltrackingchallenge.net"  # where the challenge keeps its data sets
# The challenge's 2D data sets.
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
# The two archives of a data set; only the one for training holds truth.
SPLITS = ("training", "test")
TIMEOUT_SECONDS = 60

# Bytes that each byte of an archive may unpack to, beyond the first GiB; videos have 2 to 10.
MOST_UNPACKED = 100


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
    have the same. The test split is stored under ``<name>-test``. Of several calls at once, in all
    processes that see the directory, one works and the others wait (``.<name>.lock``). While the
    archive is there, the folder is checked to hold all of its files.

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
        ValueError: If name, split or known_hash is wrong, the archive has another checksum, it is
            damaged or holds something else than the folder (it is removed), or files of the folder
            are missing.
    """
    _check_arguments(name, split, url, known_hash)
    stored = name if split == "training" else f"{name}-test"
    folder = Path(directory).expanduser()
    archive, target = folder / f"{stored}.zip", folder / stored
    if not _is_filled(target):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{stored}.lock"):
            if not _is_filled(target):
                if target.is_dir():
                    target.rmdir()
                address = url or f"{ADDRESS}/{split}-datasets/{name}.zip"
                _download(address, archive, known_hash, progress)
                _unpack(archive, name, target)
                with open_atomic(_find_note(archive)) as temporary:
                    temporary.write_text(f"{_hash(archive)}\n")
    note = _find_note(archive)
    found = note.read_text().strip() if note.is_file() else None
    if known_hash is not None and found != known_hash.lower():
        raise ValueError(
            f"{target} must be of an archive with known_hash={known_hash}, but {note.name} says "
            f"{found}; remove {target} and {archive.name}, or leave known_hash out"
        )
    _check_whole(archive, name, target)
    return target


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _find_note(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_whole(archive: Path, name: str, target: Path) -> None:
    """Refuse a folder that lacks files of its archive, where the archive is there."""
    if not archive.is_file():
        return
    with (
        refuse_damage(
            lambda why: f"{archive} is damaged ({why}); remove it, and {target} is taken for whole"
        ),
        zipfile.ZipFile(archive) as file,
    ):
        members = [x for x in file.infolist() if x.filename.startswith(f"{name}/")]
    sizes = {x.filename.removeprefix(f"{name}/"): x.file_size for x in members if not x.is_dir()}
    missing = [
        path
        for path, size in sizes.items()
        if not (target / path).is_file() or (target / path).stat().st_size != size
    ]
    if missing:
        raise ValueError(
            f"{target} must hold the {len(sizes)} files of {archive.name}, but {len(missing)} are "
            f"missing or of another size: {cut_words(', '.join(missing[:5]))}; remove {target} to "
            f"have it unpacked again, or {archive.name} if it is to be so"
        )


def _transfer(url: str, part: Path, progress: bool) -> bool:
    """Append what is missing to an unfinished file; False if the file does not fit."""
    done = _count_bytes(part)
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
            total=done + rest if rest else None, initial=done, desc=part.stem,
            disable=not progress, unit="B", unit_scale=True,
        )  # fmt: skip
        with bar, part.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(2**14):
                bar.update(file.write(chunk))
    if rest and _count_bytes(part) != done + rest:
        raise ConnectionError(f"got {_count_bytes(part)} of {done + rest} bytes")
    return True


def _count_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


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


def _download(url: str, archive: Path, known_hash: str | None, progress: bool) -> None:
    """Fetch the archive, from where an earlier call stopped, unless it is there as expected."""
    note = _find_note(archive)
    expected = (known_hash or (note.read_text().strip() if note.is_file() else "")).lower()
    if archive.is_file() and expected in ("", _hash(archive)):
        return
    part = archive.with_name(f"{archive.name}.part")
    try:
        while not _transfer(url, part, progress):
            part.unlink()
    except (requests.RequestException, ConnectionError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (404, 410):
            raise FileNotFoundError(f"{url} is not there ({error})") from error
        kept = _count_bytes(part)
        rest = f"{kept} bytes are kept in {part}, call again to continue" if kept else "call again"
        raise ConnectionError(
            f"could not fetch {url} ({cut_words(str(error), 300)}); {rest}"
        ) from error
    if expected and (found := _hash(part)) != expected:
        part.unlink()
        raise ValueError(
            f"{url} has another sha256 than the expected {expected}, {found}; the file has been "
            f"removed. Call again, or, if the data set has been replaced, remove {note.name} or "
            "give its known_hash"
        )
    part.replace(archive)


def _unpack(archive: Path, name: str, target: Path) -> None:
    """Unpack the archive into a temporary folder, and move its folder to the target."""

    def describe(why: str) -> str:
        archive.unlink()
        return (
            f"{archive} is damaged or unsafe and has been removed: {why}; call again to fetch it "
            "anew"
        )

    with open_atomic_folder(target) as folder, refuse_damage(describe):
        with zipfile.ZipFile(archive) as file:
            _check_members(file.infolist(), name, archive.stat().st_size)
            file.extractall(folder.parent)
        (folder.parent / name).rename(folder)


def _check_members(members: list[zipfile.ZipInfo], name: str, size: int) -> None:
    """Refuse paths out of the folder, other folders, and files that would fill the disk."""
    names = [member.filename for member in members]
    for path in names:
        parts = re.split(r"[/\\]", path)
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError(f"it holds a path that leads out of the folder, {path!r}")
    if not any(path.startswith(f"{name}/") for path in names):
        raise ValueError(f"it must hold a folder {name!r}, got {names[:3]}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > 2**30 + MOST_UNPACKED * size:
        raise ValueError(f"its {size} bytes would unpack to {unpacked}")
