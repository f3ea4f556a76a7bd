"""tuspyserver as its README shows it. Runs under the interpreter of `bench/work/venv`; BENCH_FILES: where files go."""

from __future__ import annotations

import os

from fastapi import FastAPI
from tuspyserver import create_tus_router

app = FastAPI()
app.include_router(create_tus_router(files_dir=os.environ["BENCH_FILES"]))
