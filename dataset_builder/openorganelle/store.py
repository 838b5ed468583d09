"""The few questions that discovery asks of a bucket, a web server or a folder: what is below, what does this file say.

Chunks are read by tensorstore (``layers.py``). Listing needs one level with a delimiter, which tensorstore's key-value
stores do not offer: they would list every chunk of an array.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.volume_io import is_remote

ATTEMPTS = 4
FIRST_DELAY_S = 0.2  # doubles with every attempt
TIMEOUT_S = 30.0
PARALLEL = 32  # questions under way at once
KEYS_PER_PAGE = 1000  # of an S3 listing
TRANSIENT = (429, 500, 502, 503, 504)


class Store:
    """A folder of data sets: ``s3://bucket[/prefix]``, ``http(s)://host[/prefix]`` or a local folder."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = os.fspath(root).rstrip("/")
        self.remote = is_remote(self.root)
        self.cannot_list = ""  # why, once the server has refused; folders() then answers None
        self.denied = 0  # answers 401 and 403: a bucket that may not be listed gives them for what does not exist
        if self.remote:
            self._base, self._prefix = _web_address(self.root)

    def location(self, key: str) -> str:
        """Return what ``open_volume`` opens for a key below the root."""
        return f"{self.root}/{key}".rstrip("/")

    def published(self, key: str) -> str:
        """Name a key in what is published: a server's address, or the key below the root, wherever a copy lies."""
        return self.location(key) if self.remote else key.rstrip("/")

    def folders(self, key: str) -> list[str] | None:
        """List the folders directly below ``key``, sorted; ``None`` where the server does not list."""
        if not self.remote:
            folder = Path(self.root.removeprefix("file://")) / key
            return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        pages = self._list(key, {"delimiter": "/"})
        if pages is None:
            return None
        prefixes = [found.findtext("{*}Prefix") or "" for page in pages for found in page.findall("{*}CommonPrefixes")]
        return sorted(prefix[:-1].rpartition("/")[2] for prefix in prefixes)

    def json(self, key: str) -> dict[str, Any] | None:
        """Read a JSON object; ``None`` if there is none (or the server will not say)."""
        if not self.remote:
            path = Path(self.root.removeprefix("file://")) / key
            text = path.read_bytes() if path.is_file() else None
        else:
            status, _, body = self._ask(self._url(key))
            text = body if status == 200 else None
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(
                f"{self.location(key)} cannot be read",
                found=str(error),
                expected="a JSON document",
                remedy="the file is truncated or no metadata: download it again",
            ) from error
        return value if isinstance(value, dict) else None

    def sizes(self, folder: str, names: Sequence[str], of: int) -> list[int | None]:
        """Return the stored size in bytes of files below a folder, ``None`` for one that does not exist.

        ``of`` is how many files the folder holds if it is full: it is listed if that takes fewer questions than asking
        for each name.
        """
        if not self.remote:
            inside = Path(self.root.removeprefix("file://")) / folder
            return [path.stat().st_size if (path := inside / name).is_file() else None for name in names]
        pages = self._list(folder, {}) if of / KEYS_PER_PAGE < len(names) else None
        if pages is None:
            with ThreadPoolExecutor(PARALLEL) as pool:
                return list(pool.map(self._size, [f"{folder}/{name}" for name in names]))
        start = len("/".join(part for part in (self._prefix, folder) if part)) + 1
        files = [file for page in pages for file in page.findall("{*}Contents")]
        found = {(file.findtext("{*}Key") or "")[start:]: int(file.findtext("{*}Size") or 0) for file in files}
        return [found.get(name) for name in names]

    def _list(self, key: str, query: dict[str, str]) -> list[ElementTree.Element] | None:
        """Ask for all pages of an S3 listing (ListObjectsV2); ``None`` where the server does not list."""
        if self.cannot_list:
            return None
        prefix = "/".join(part for part in (self._prefix, key) if part)
        query = {"list-type": "2", "prefix": f"{prefix}/" if prefix else "", **query}
        pages: list[ElementTree.Element] = []
        while True:
            status, _, body = self._ask(f"{self._base}/?{urllib.parse.urlencode(query)}")
            page = _parse_listing(body) if status == 200 else None
            if page is None:
                self.cannot_list = f"HTTP {status}" if status != 200 else "no S3 server"
                return None
            pages.append(page)
            token = page.findtext("{*}NextContinuationToken")
            if not token:
                return pages
            query["continuation-token"] = token

    def _size(self, key: str) -> int | None:
        status, length, _ = self._ask(self._url(key), method="HEAD")
        if status in (200, 404):
            return length if status == 200 else None
        if status in (401, 403) and self.cannot_list:
            return None
        raise _unreachable(self.location(key), f"HTTP {status}")

    def _url(self, key: str) -> str:
        path = "/".join(part for part in (self._prefix, key) if part)
        return f"{self._base}/{urllib.parse.quote(path)}"

    def _ask(self, url: str, method: str = "GET") -> tuple[int, int | None, bytes]:
        """Return ``(status, length, body)``; repeats what fails for a moment, ``InputError`` for no answer at all."""
        problem: object = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_DELAY_S * 2 ** (attempt - 1))
            request = urllib.request.Request(url, method=method)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    length = answer.headers.get("Content-Length")
                    return answer.status, None if length is None else int(length), answer.read()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in TRANSIENT:
                    problem = f"HTTP {error.code}"
                    continue
                self.denied += error.code in (401, 403)
                return error.code, None, b""
            except (OSError, http.client.HTTPException) as error:
                problem = getattr(error, "reason", error)
        raise _unreachable(url, problem)


def _unreachable(url: str, problem: object) -> InputError:
    return InputError(
        f"{url} cannot be reached",
        found=str(problem),
        expected="a server that answers without a login",
        remedy="check the address (option root), the network and AWS_ENDPOINT_URL; or copy the data below --raw",
    )


def _web_address(root: str) -> tuple[str, str]:
    """Split a remote root into the address that answers S3 listings and the prefix below it."""
    if root.startswith("s3://"):
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return (f"{endpoint.rstrip('/')}/{bucket}" if endpoint else f"https://{bucket}.s3.amazonaws.com"), prefix
    parts = urllib.parse.urlsplit(root)
    return f"{parts.scheme}://{parts.netloc}", urllib.parse.unquote(parts.path.strip("/"))


def _parse_listing(body: bytes) -> ElementTree.Element | None:
    """Return the answer to ListObjectsV2; ``None`` if it is something else, such as a web page."""
    try:
        tree = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return None
    return tree if tree.tag.endswith("ListBucketResult") else None
