"""A link of a certain speed: an S3 server over objects in memory that gives all who ask, together, so many bytes a second."""

import contextlib
import hashlib
import http.server
import threading
import time
from urllib.parse import unquote, urlsplit

PIECE = 128 << 10


class Link:
    """Who takes bytes waits until it is their turn."""

    def __init__(self, rate: float):
        self.rate, self.free, self.lock = rate, time.monotonic(), threading.Lock()

    def take(self, count: int) -> None:
        with self.lock:
            begin = max(self.free, time.monotonic())
            self.free = begin + count / self.rate
        # The pace is what is simulated.
        time.sleep(max(0, self.free - time.monotonic()))


@contextlib.contextmanager
def paced(objects: dict[str, bytes], rate: float):
    """Serves `objects` in any bucket on a port of its own; gives the endpoint."""
    etags = {key: f'"{hashlib.md5(content).hexdigest()}"' for key, content in objects.items()}
    link = Link(rate)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            _, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            if not key:
                return self.answer(200, listing(objects, etags), {"Content-Type": "application/xml"})
            if key not in objects:
                return self.answer(404, b"", {})
            body, headers = objects[key], {"ETag": etags[key]}
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if not asked or self.command == "HEAD":
                return self.answer(200, body, headers, link)
            first, last = map(int, asked.split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self.answer(206, body[first : last + 1], headers, link)

        def answer(self, status: int, body: bytes, headers: dict[str, str], link: Link | None = None):
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

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.daemon_threads = True
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()


def listing(objects: dict[str, bytes], etags: dict[str, str]) -> bytes:
    of_each = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(objects[key])}</Size><ETag>{etags[key]}</ETag>"
        "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in sorted(objects)
    )
    head = f"<Name>b</Name><KeyCount>{len(objects)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{head}{of_each}</ListBucketResult>'.encode()
