"""tuspy with pieces of 8 MiB. Runs under the interpreter of `bench/work/venv`; lines as `tus_upload.mjs` has them."""

from __future__ import annotations

import json
import sys
import time

from tusclient.client import TusClient

PIECE_BYTES = 8 * 1024 * 1024


def main() -> None:
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        uploader = TusClient(request["endpoint"]).uploader(request["path"], chunk_size=PIECE_BYTES)
        uploader.upload()
        print(json.dumps({"seconds": time.monotonic() - began, "url": uploader.url}), flush=True)


if __name__ == "__main__":
    main()
