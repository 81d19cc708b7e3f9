#!/usr/bin/env python3
"""An S3 server over 943 objects in memory, some of them large enough to come in parts: objects.py ADDRESS"""

import hashlib
import http.server
import random
import sys
from urllib.parse import unquote, urlsplit

MIB = 1 << 20


def objects() -> dict[str, bytes]:
    made = random.Random(1)
    sizes = {f"small/{n:04}": 16 << 10 for n in range(900)}
    sizes |= {f"whole/{n:02}": MIB for n in range(40)} | {f"parts/{n}": 40 * MIB for n in range(3)}
    return {key: made.randbytes(size) for key, size in sizes.items()}


OBJECTS = objects()
ETAGS = {key: f'"{hashlib.md5(content).hexdigest()}"' for key, content in OBJECTS.items()}


def listing() -> bytes:
    of_each = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(OBJECTS[key])}</Size><ETag>{ETAGS[key]}</ETag>"
        "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in sorted(OBJECTS)
    )
    head = f"<Name>b</Name><KeyCount>{len(OBJECTS)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{head}{of_each}</ListBucketResult>'.encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        if not key:
            return self.answer(200, listing(), {"Content-Type": "application/xml"})
        if key not in OBJECTS:
            return self.answer(404, b"", {})
        body, headers = OBJECTS[key], {"ETag": ETAGS[key]}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or self.command == "HEAD":
            return self.answer(200, body, headers)
        first, last = map(int, asked.split("-"))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        self.answer(206, body[first : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


if __name__ == "__main__":
    server = Server((sys.argv[1], 9000), Handler)
    print("ready", flush=True)
    server.serve_forever()
