"""HTTP downloads by signed link, with one range where asked for (RFC 9110 section 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Generator
from typing import BinaryIO

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_safe

from delivery import api
from delivery.errors import IntegrityError, StorageUnavailable
from delivery.models import Payload, PayloadState
from delivery.transfers import missing_files

PIECE_BYTES = 256 * 1024
RETRY_SECONDS = 10
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


@require_safe
def payload(request: HttpRequest, link: str) -> HttpResponseBase:
    """Stream a complete payload as a download."""
    found = _find(link)
    size = found.size or 0
    asked = _range(request, found)
    start, end = asked or (0, size)
    if asked and start >= end:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{size}"})
    try:
        response = _body(request, found, start, end)
    except StorageUnavailable as error:
        missing_files.seen_if_missing(found.pk, error)
        return HttpResponse(status=503, headers={"Retry-After": str(RETRY_SECONDS)})
    if asked:
        response.status_code = 206
        response["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    response["Content-Length"] = str(end - start)
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = _etag(found)
    response["Cache-Control"] = "private"
    # Never shown in place: a sender's HTML must not run under the site's own origin.
    response["Content-Type"] = "application/octet-stream"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Disposition"] = content_disposition_header(True, found.name or str(found.pk)) or "attachment"
    return response


def _body(request: HttpRequest, found: Payload, start: int, end: int) -> HttpResponseBase:
    if request.method == "HEAD":
        return HttpResponse()
    pieces = _pieces(_open(found, start), start, end)
    # Django takes all pieces of a synchronous iterator into memory before an ASGI server sees the first.
    return StreamingHttpResponse(_in_threads(pieces) if isinstance(request, ASGIRequest) else pieces)


def _find(link: str) -> Payload:
    key = api.payload_of(link)
    lasting = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    found = None if key is None else Payload.objects.filter(lasting, pk=key, state=PayloadState.COMPLETE).first()
    if found is None:
        raise Http404("no such payload, or the link has expired")
    return found


def _etag(found: Payload) -> str:
    return f'"{found.sha256}"'


def _range(request: HttpRequest, found: Payload) -> tuple[int, int] | None:
    """Return (start, end) in bytes of the one range asked for, end exclusive; None where everything is to be given.

    One that cannot be satisfied comes out with `start` at or past `end`.
    """
    size = found.size or 0
    match = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    first, last = match.groups() if match else ("", "")
    if (first, last) == ("", "") or request.headers.get("If-Range", _etag(found)) != _etag(found):
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None  # no range at all (RFC 9110 section 14.1.1)
    return int(first), min(size, int(last) + 1) if last else size


def _open(found: Payload, start: int) -> BinaryIO:
    """Open a payload at `start`, and read on: what cannot be read at all is an HTTP status, not an answer that breaks off.

    Raises `StorageUnavailable`, and `Http404` where a file delivered in place is not what it was.
    """
    file = found.open()
    file.seek(start)
    try:
        file.peek(1)
    except IntegrityError:
        raise Http404("the file that was to be delivered is gone or has changed") from None
    return file


def _pieces(file: BinaryIO, start: int, end: int) -> Generator[bytes, None, None]:
    with file:
        while start < end:
            piece = file.read(min(PIECE_BYTES, end - start))
            if not piece:
                raise StorageUnavailable(f"a payload ends {end - start} bytes early")
            start += len(piece)
            yield piece


async def _in_threads(pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """Yield what `pieces` yields, each read in a thread. Reading queries no database: `open()` did."""
    following = sync_to_async(lambda: next(pieces, b""), thread_sensitive=False)
    try:
        while piece := await following():
            yield piece
    finally:
        await sync_to_async(pieces.close, thread_sensitive=False)()
