"""obstore as a copy tool: `obstore_copy.py ENDPOINT BUCKET DIRECTORY`.

Threads, because obstore's blocking calls run in Rust without the interpreter's lock, and cost less than its coroutines.
Objects go to the pool while the listing still runs; large ones in parts. Nothing is copied between the answer and the
write: the answer is written from the buffer that it was received in.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore

import obstore
from obstore.store import S3Store

PART = 16 << 20
THREADS = 8


def main() -> None:
    endpoint, bucket, directory = sys.argv[1:]
    store = S3Store(bucket, endpoint=endpoint, virtual_hosted_style_request=False, client_options={"allow_http": True})
    made = set()

    def create(path: str) -> int:
        parent = os.path.dirname(path)
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def whole(key: str, size: int) -> None:
        body = obstore.get(store, key).bytes() if size else b""
        if len(body) != size:
            raise OSError(f"{key}: {len(body)} bytes came, not {size}")
        file = create(f"{directory}/{key}")
        try:
            write(file, memoryview(body), 0)
        finally:
            os.close(file)

    def part(key: str, file: int, begin: int, end: int) -> None:
        body = obstore.get_range(store, key, start=begin, end=end)
        if len(body) != end - begin:
            raise OSError(f"{key}: {len(body)} bytes came, not {end - begin}")
        write(file, memoryview(body), begin)

    # So that a long listing does not fill the memory with work to do.
    room = BoundedSemaphore(4 * THREADS)
    failures = []

    with ThreadPoolExecutor(THREADS) as pool:

        def submit(work, *arguments):
            room.acquire()

            def run():
                try:
                    work(*arguments)
                except Exception as error:
                    failures.append(error)
                finally:
                    room.release()

            return pool.submit(run)

        open_files = []
        for page in obstore.list(store, chunk_size=1000):
            for meta in page:
                key, size = meta["path"], meta["size"]
                if size <= PART:
                    submit(whole, key, size)
                    continue
                file = create(f"{directory}/{key}")
                open_files.append(file)
                for begin in range(0, size, PART):
                    submit(part, key, file, begin, min(size, begin + PART))
    for file in open_files:
        os.close(file)
    if failures:
        sys.exit(f"{len(failures)} failed, the first: {failures[0]}")


def write(file: int, body: memoryview, at: int) -> None:
    while body:
        written = os.pwrite(file, body, at)
        body, at = body[written:], at + written


main()
