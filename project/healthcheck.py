"""Whether the web process on this machine answers: `python project/healthcheck.py`, for a container's health check.

It asks as a visitor of the first host in ALLOWED_HOSTS: Django answers any other with 400, and logs an error each time.
"""

import http.client
import os
import sys

SECONDS = 4.0


def host() -> str:
    """Return a host that the site takes: the first one, of `.example.org` its apex, of `*` or nothing `localhost`."""
    first = os.environ.get("ALLOWED_HOSTS", "").partition(",")[0].strip().removeprefix(".")
    return first if first not in ("", "*") else "localhost"


def main() -> int:
    """Return an exit status: 0 where the process answers, be it with a redirect to https."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT") or 8000), timeout=SECONDS)
    try:
        connection.request("GET", "/", headers={"Host": host()})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no answer: {type(error).__name__}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"{status}\n")
    return 0 if status < 400 else 1


if __name__ == "__main__":
    sys.exit(main())
