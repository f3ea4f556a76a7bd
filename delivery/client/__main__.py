"""The command line: `python -m delivery.client send FILE... --to user:alice` and `... receive --dir DIR`."""

from delivery.client.cli.main import main, script

__all__ = ["main", "script"]

if __name__ == "__main__":
    script()
