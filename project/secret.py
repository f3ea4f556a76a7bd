"""Files that nobody else may read: Django's SECRET_KEY where the environment has none, and the SQLite file."""

import os
import secrets
import stat
from pathlib import Path


def kept_secret(path: Path) -> str:
    """Return the secret in the file `path`; make it, readable by its owner only, where it is missing.

    Processes that start at the same moment agree: whoever comes second finds the first one's file.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(50) + "\n")
    try:
        os.link(temporary, path)  # unlike a rename, it never replaces
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_text().strip()


def private_file(path: Path) -> Path:
    """Return `path` of a file that is there, readable by its owner only. What SQLite writes beside it has its mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    found = path.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and found.st_uid == os.geteuid():
        path.chmod(0o600)
    return path
