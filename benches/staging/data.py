"""What the rows stage: buckets of objects, made once by a seeded generator and kept in the cache directory.

A bucket is a directory of files that nginx serves as they are, and the pages of its listing, made beforehand: as S3
gives them, 1,000 keys a page, with the ETags that nginx answers with (mtime and size in hexadecimal), once with keys
as they are and once percent-encoded, as `encoding-type=url` asks for. The objects of a stub are all one file, so that
a million of them take no room but their listing.
"""

import json
import os
import random
import re
import shutil
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SEED = 20_131_031
KEYS_A_PAGE = 1000
# A fixed time, so that the ETags are the same whenever the data is made.
EPOCH = 1_700_000_000
# Raised when what is generated changes, so that older data is not taken for it.
FORMAT = 2

# Keys that every tool can name on every command line, and that are paths as they stand.
ORDINARY_KEY = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+@=,~ -]*(/[A-Za-z0-9._][A-Za-z0-9._+@=,~ -]*)*")
# Sources, data, and libraries: how many files at most of each, of how many bytes together, of how many at least.
MIXED_ROOTS = [
    (Path.home() / ".cargo/registry/src", 4000, 60 * MIB, 0),
    (Path("/usr/share"), 4000, 120 * MIB, 0),
    (Path("/usr/lib"), 1000, 220 * MIB, 64 * KIB),
]


@dataclass(frozen=True)
class Row:
    """One line of the table for each tool: a bucket, and what the figures of it are given by."""

    name: str
    title: str
    # "GiB" or "1000 objects": what the CPU seconds are divided by.
    unit: str
    count: int = 0
    size: int = 0
    # At most so much of s5cmd's wall time and CPU seconds.
    goals: tuple[float, float] | None = None
    server: str = "nginx"
    stub: bool = False
    # Outputs of few large files are removed after each run, those of many small ones at the end.
    large: bool = False


ROWS = [
    Row("large", "{bytes} in {count} objects", "GiB", 16, 256 * MIB, goals=(0.75, 0.35), large=True),
    Row("small", "{count} objects of 16 KiB", "1000 objects", 20_000, 16 * KIB, goals=(0.35, 0.30)),
    Row("single", "one object of {bytes}", "GiB", 1, 4 * GIB, goals=(0.75, 0.35), large=True),
    Row("mixed", "a tree of {count} real files, {bytes}", "1000 objects"),
    Row("signed", "{count} objects of 16 KiB, from rclone serve s3", "1000 objects", 2_000, 16 * KIB, server="rclone"),
    Row("tiny", "{count} objects of 100 bytes", "1000 objects", 20_000, 100, stub=True),
    Row("million", "{count} objects of 100 bytes", "1000 objects", 1_000_000, 100, stub=True),
]
DEFAULT_ROWS = ["large", "small", "single", "mixed", "signed"]
MILLION_ROWS = ["tiny", "million"]


@dataclass(frozen=True)
class Bucket:
    row: Row
    count: int
    bytes: int
    # What nginx and rclone serve; a stub's directory holds one file.
    directory: Path

    @property
    def title(self) -> str:
        size = f"{self.bytes / GIB:g} GiB" if self.bytes >= GIB else f"{self.bytes / MIB:.0f} MiB"
        return self.row.title.format(count=f"{self.count:,}", bytes=size)

    @property
    def stub_file(self) -> Path | None:
        return self.directory / "object" if self.row.stub else None

    def files(self):
        """The files to be served, each once."""
        for folder, _, names in os.walk(self.directory):
            for name in names:
                yield Path(folder, name)


def scaled(row: Row, scale: float) -> tuple[int, int]:
    """Count and size of a row's objects. Large objects shrink, small ones become fewer."""
    if row.large:
        return row.count, max(MIB, int(row.size * scale) // MIB * MIB)
    return max(1, int(row.count * scale)), row.size


def bucket(row: Row, data: Path, scale: float, say) -> Bucket:
    """The row's bucket, made if it is not there."""
    count, size = scaled(row, scale)
    wanted = {"format": FORMAT, "seed": SEED, "count": count, "size": size}
    directory, listing = data / "objects" / row.name, data / "listings" / row.name
    # Written last: without it the rest is what an interrupted run left.
    mark = data / f"{row.name}.json"
    made = json.loads(mark.read_text()) if mark.exists() else {}
    if made.get("wanted") != wanted:
        say(f"making the data of {row.name}")
        mark.unlink(missing_ok=True)
        for old in (directory, listing):
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir(parents=True)
        if row.stub:
            objects = stub_objects(directory, count, size)
        elif row.name == "mixed":
            objects = copied_objects(directory, scale)
        else:
            objects = random_objects(directory, count, size)
        total, number = write_listing(row.name, listing, objects)
        made = {"wanted": wanted, "count": number, "bytes": total}
        mark.write_text(json.dumps(made))
        os.sync()
    return Bucket(row, made["count"], made["bytes"], directory)


def key(index: int) -> str:
    return f"{index // 1000:04}/{index:07}.bin"


def random_objects(directory: Path, count: int, size: int):
    for index in range(count):
        path = directory / key(index)
        path.parent.mkdir(exist_ok=True)
        source = random.Random(f"{SEED}/{size}/{index}")
        with path.open("wb") as file:
            for begin in range(0, size, 4 * MIB):
                file.write(source.randbytes(min(4 * MIB, size - begin)))
        yield key(index), size, stamp(path, index)


def stub_objects(directory: Path, count: int, size: int):
    path = directory / "object"
    path.write_bytes(random.Random(SEED).randbytes(size))
    etag = stamp(path, 0)
    for index in range(count):
        yield key(index), size, etag


def copied_objects(directory: Path, scale: float):
    """Real files of this machine: whole folders in a seeded order, until there is enough of each kind."""
    folded = set()
    for root, files_left, bytes_left, least in MIXED_ROOTS:
        files_left, bytes_left = files_left * scale, bytes_left * scale
        folders = candidates(root) if root.is_dir() else []
        random.Random(SEED).shuffle(folders)
        for path in (path for folder in folders for path in sorted(regular_files(folder))):
            name, size = str(path.relative_to("/")), path.stat().st_size
            # Two keys that differ in case only would be one file on some mounts; they are not what this row measures.
            usable = ORDINARY_KEY.fullmatch(name) and len(name) <= 900 and name.lower() not in folded
            if not usable or not least <= size <= bytes_left or files_left < 1:
                continue
            bytes_left, files_left = bytes_left - size, files_left - 1
            folded.add(name.lower())
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, directory / name)
    names = [str(path.relative_to(directory)) for path in regular_files(directory)]
    for index, name in enumerate(sorted(names)):
        path = directory / name
        yield name, path.stat().st_size, stamp(path, index)


def candidates(root: Path) -> list[Path]:
    """Folders small enough that a seeded choice of them is a mixture."""
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.is_symlink()]
    if len(below) == 1:
        return candidates(below[0])
    return below


def regular_files(folder: Path):
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def stamp(path: Path, index: int) -> str:
    """Sets the time of a file and gives the ETag that nginx has for it then."""
    time = EPOCH + index
    os.utime(path, (time, time))
    return f"{time:x}-{path.stat().st_size:x}"


def page_name(page: int) -> str:
    return f"p{page:07}"


def write_listing(name: str, directory: Path, objects) -> tuple[int, int]:
    """Writes the pages of a listing; gives the sum and the number of the objects, which come ordered by key."""
    for form in ("plain", "url"):
        (directory / form).mkdir(parents=True)
    total = number = page = 0
    entries, previous = [], ""

    def write(last: bool):
        for form in ("plain", "url"):
            encode = urllib.parse.quote if form == "url" else escape
            contents = "".join(
                f"<Contents><Key>{encode(key)}</Key><LastModified>2023-11-14T22:13:20.000Z</LastModified>"
                f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for key, size, etag in entries
            )
            text = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Name>{name}</Name><Prefix></Prefix>"
                + (f"<ContinuationToken>{page_name(page)}</ContinuationToken>" if page else "")
                + ("" if last else f"<NextContinuationToken>{page_name(page + 1)}</NextContinuationToken>")
                + f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>{KEYS_A_PAGE}</MaxKeys>"
                + ("<EncodingType>url</EncodingType>" if form == "url" else "")
                + f"<IsTruncated>{'false' if last else 'true'}</IsTruncated>{contents}</ListBucketResult>"
            )
            (directory / form / f"{page_name(page)}.xml").write_text(text)

    for key, size, etag in objects:
        if not previous < key:
            raise ValueError(f"{key!r} comes after {previous!r}: a listing is ordered by key")
        if len(entries) == KEYS_A_PAGE:
            write(last=False)
            page, entries = page + 1, []
        entries.append((key, size, etag))
        total, number, previous = total + size, number + 1, key
    write(last=True)
    return total, number
