"""HTTP downloads by signed link, with one range where asked for (RFC 9110 section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_safe

from delivery import links
from delivery.models import Payload, PayloadState

PIECE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@require_safe
def payload(request: HttpRequest, link: str) -> HttpResponseBase:
    """Stream a complete payload as a download."""
    key = links.payload_of(link)
    found = None if key is None else Payload.objects.filter(pk=key, state=PayloadState.COMPLETE).first()
    if found is None:
        raise Http404("no such payload, or the link has expired")
    size = found.size or 0
    start, end = _range(request.headers.get("Range", ""), size)
    if start >= end and size:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{size}"})
    partial = (start, end) != (0, size)
    response = StreamingHttpResponse(_pieces(found.open(), start, end), status=206 if partial else 200)
    if partial:
        response["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    response["Content-Length"] = str(end - start)
    response["Accept-Ranges"] = "bytes"
    # Never shown in place: a sender's HTML must not run under the site's own origin.
    response["Content-Type"] = "application/octet-stream"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Disposition"] = content_disposition_header(True, found.name or str(found.pk)) or "attachment"
    return response


def _range(header: str, size: int) -> tuple[int, int]:
    """Return (start, end) in bytes of the one range asked for, end exclusive; everything where there is none."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end:
            piece = file.read(min(PIECE_BYTES, end - start))
            start += len(piece)
            yield piece
