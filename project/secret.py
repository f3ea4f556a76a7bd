"""Django's SECRET_KEY where the environment has none: made once, then the same for every process of the site."""

import os
import secrets
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
