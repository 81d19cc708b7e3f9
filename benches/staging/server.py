"""The S3 servers: nginx over files and listings made beforehand, and `rclone serve s3` as a cross-check.

nginx answers what S3 answers, at the least cost that a server can have: a listing is a static file chosen by its
continuation token, an object is sent by sendfile. It does not look at signatures, so that what is measured is the
client. A request that has no prepared answer (a prefix, a delimiter, the first version of the listing) gets 400, so
that no tool is ever measured on a wrong listing.
"""

import ctypes
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import xml.etree.ElementTree
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "benchaccesskey", "benchsecretkey"
START_SECONDS = 20

CONFIG = """\
daemon off;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log warn;
{user}
worker_processes auto;
worker_rlimit_nofile {files};
events {{ worker_connections 4096; }}
http {{
    access_log {access_log};
    default_type application/octet-stream;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;

    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    etag on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    open_file_cache max={cached} inactive=1h;
    open_file_cache_valid 1h;

    # Only a whole bucket is listed, and only by the second version of the listing.
    map $args $listable {{ default 0; "~(^|&)list-type=2(&|$)" 1; }}
    map $args $narrowed {{ default 0; "~(^|&)(prefix|delimiter|start-after)=[^&]" 1; }}
    map $args $page {{
        default p0000000;
        "~(^|&)continuation-token=(?<token>p[0-9]+)(&|$)" $token;
        "~(^|&)continuation-token=" absent;
    }}
    map $args $form {{ default plain; "~(^|&)encoding-type=url(&|$)" url; }}

    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {data}/objects;

        location ~ ^/(?<bucket>[a-z0-9]+)/?$ {{
            if ($listable = 0) {{ return 400; }}
            if ($narrowed) {{ return 400; }}
            default_type application/xml;
            root {data}/listings;
            try_files /$bucket/$form/$page.xml =404;
        }}
{stubs}
    }}
}}
"""
STUB = """\
        location /{name}/ {{ rewrite ^ /{name}/object break; }}
"""


class Failed(Exception):
    pass


def nginx_binary() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise Failed("nginx is not installed: apt-get install nginx-light")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dies_with_parent():
    """In the child: ends with this program, however that ends."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Server:
    """A process that listens on a port of its own, from `with` to its end."""

    def __init__(self, argv: list[str], port: int, log: Path, env: dict[str, str] | None = None):
        self.argv, self.port, self.log, self.env = argv, port, log, env
        self.endpoint = f"http://127.0.0.1:{port}"

    def __enter__(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, preexec_fn=dies_with_parent
            )
        try:
            self.wait_until_it_answers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_until_it_answers(self):
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.argv[0]} does not answer on port {self.port}: see {self.log}\n{self.tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                # It gives no other sign that it listens.
                time.sleep(0.02)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def nginx(data: Path, stubs: list[str], prefix: Path, log_requests: bool = False) -> Server:
    prefix.mkdir(parents=True, exist_ok=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    port = free_port()
    config = prefix / "nginx.conf"
    config.write_text(
        CONFIG.format(
            prefix=prefix,
            data=data,
            port=port,
            user="user root;" if os.geteuid() == 0 else "",
            files=files,
            # The rest is for connections.
            cached=files * 3 // 4,
            access_log=f"{prefix}/access.log" if log_requests else "off",
            stubs="".join(STUB.format(name=name) for name in stubs),
        )
    )
    log = prefix / "error.log"
    argv = [nginx_binary(), "-p", str(prefix), "-c", str(config), "-e", str(log)]
    return Server(argv, port, log)


def rclone(binary: Path, data: Path, prefix: Path) -> Server:
    """Checks signatures, and computes the MD5 of each object for its listing."""
    prefix.mkdir(parents=True, exist_ok=True)
    port = free_port()
    argv = [str(binary), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    argv += ["--read-only", "--dir-cache-time", "1h", "--log-level", "ERROR", str(data / "objects")]
    env = {"PATH": os.environ["PATH"], "HOME": str(prefix), "RCLONE_CONFIG": "/dev/null"}
    return Server(argv, port, prefix / "rclone.log", env)


def check_listing(server: Server, bucket: str) -> None:
    """Whether objects answer with the ETags that the listing has: a tool that asks by If-Match would ask twice."""
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_SECONDS)
    connection.request("GET", f"/{bucket}?list-type=2&prefix=&encoding-type=url")
    entries = xml.etree.ElementTree.fromstring(connection.getresponse().read()).findall(f"{space}Contents")
    for entry in entries[:: max(1, len(entries) // 50)]:
        key, etag, size = (entry.findtext(f"{space}{name}") for name in ("Key", "ETag", "Size"))
        connection.request("HEAD", f"/{bucket}/{key}", headers={"If-Match": etag})
        answer = connection.getresponse()
        answer.read()
        got = (answer.status, answer.headers["ETag"], answer.headers["Content-Length"])
        if got != (200, etag, size):
            raise Failed(f"{bucket}/{key} is listed as {etag} of {size} bytes and answers {got}: remove the kept data")
    connection.close()
