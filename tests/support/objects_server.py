"""An S3 server over objects in memory, for what is not written in Rust. Any bucket holds them; nobody's signature is looked at."""

import hashlib
import http.server
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 128 << 10


class Link:
    """Who takes bytes waits until it is their turn."""

    def __init__(self, rate: float):
        self.rate, self.free, self.lock = rate, time.monotonic(), threading.Lock()

    def take(self, count: int) -> None:
        with self.lock:
            begin = max(self.free, time.monotonic())
            self.free = begin + count / self.rate
            wait = self.free - time.monotonic()
        # The pace is what is simulated.
        time.sleep(max(0, wait))


class Server(http.server.ThreadingHTTPServer):
    """Listens at an address; with a rate, gives all who ask, together, so many bytes a second."""

    request_queue_size = 512
    daemon_threads = True

    def __init__(self, address: tuple[str, int], objects: dict[str, bytes], rate: float | None = None):
        super().__init__(address, Handler)
        self.objects, self.link = objects, Link(rate) if rate else None
        self.etags = {key: f'"{hashlib.md5(content).hexdigest()}"' for key, content in objects.items()}

    @property
    def endpoint(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"

    def listing(self, prefix: str) -> bytes:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        of_each = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[key])}</Size><ETag>{self.etags[key]}</ETag>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        count = f"<KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys>"
        head = f"<Name>b</Name>{count}<IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{of_each}</ListBucketResult>'.encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        asked = urlsplit(self.path)
        key = unquote(asked.path).lstrip("/").partition("/")[2]
        if not key:
            [prefix] = parse_qs(asked.query).get("prefix", [""])
            return self.answer(200, self.server.listing(prefix), {"Content-Type": "application/xml"}, None)
        if key not in self.server.objects:
            return self.answer(404, b"", {}, None)
        body, headers = self.server.objects[key], {"ETag": self.server.etags[key]}
        range_asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not range_asked or self.command == "HEAD":
            return self.answer(200, body, headers, self.server.link)
        first, last = map(int, range_asked.split("-"))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        self.answer(206, body[first : last + 1], headers, self.server.link)

    def answer(self, status: int, body: bytes, headers: dict[str, str], link: Link | None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for begin in range(0, len(body) if self.command == "GET" else 0, PIECE):
            piece = memoryview(body)[begin : begin + PIECE]
            if link:
                link.take(len(piece))
            self.wfile.write(piece)

    def log_message(self, *_):
        pass
