"""What all uploads to the Hub share on the command line: where to, the dry run, the token, and what was done.

The token is that of ``hf auth login``, ``HF_TOKEN`` or a file; it is never an argument, printed or stored.
"""

from __future__ import annotations

import argparse
import re
import signal
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, api_for, explained, patiently, read_token
from em_bench_eval.hub_upload import Repository, Uploaded, hashed, upload

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
LISTED_ONE_BY_ONE = 80  # files; more are summed by folder
TOKEN_HELP = """The token is that of `hf auth login` or HF_TOKEN, or the line in --token-file; it is never printed or
stored. A repository is private unless you say --public; a push that was killed or cut off continues with the same
command, and one that is complete sends nothing.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every push takes."""
    add = parser.add_argument
    add("--revision-tag", metavar="TAG", help="name this content for good, as v1; done last")
    add("--public", action="store_true", help="let everybody see the repository once it is complete")
    add("--dry-run", action="store_true", help="list files and sizes, and send nothing")
    add("--token-file", type=Path, metavar="FILE", help="a file with one line, the access token")


def is_repo_id(text: str) -> bool:
    """Is this ``ORG/NAME`` as the Hub allows it?"""
    return re.fullmatch(f"{_PART}/{_PART}", text) is not None and ".." not in text and "--" not in text


def check_repo_id(option: str, text: str, example: str) -> str:
    """Return a repository's name; raises ``InputError`` unless it is ``ORG/NAME``."""
    if not is_repo_id(text):
        raise InputError(f"{option} names a repository", found=text, expected=f"ORG/NAME, as {example}")
    return text


def check_tag(tag: str | None) -> str | None:
    """Return the tag; raises ``InputError`` if it is no name, or that of the branch."""
    if tag is not None and not re.fullmatch(_PART, tag):
        raise InputError("--revision-tag is a name", found=tag, expected="for instance v1")
    if tag == "main":
        raise InputError("--revision-tag main is the name of the branch", expected="another name, as v1")
    return tag


def token_of(arguments: argparse.Namespace) -> str | None:
    """Read ``--token-file``; ``None`` leaves it to the Hub's client. From here on a polite kill ends like Ctrl-C."""
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return token


def size_text(size: float) -> str:
    """Write a size with a decimal unit, as ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def show_files(to: Repository, files: Mapping[str, Path]) -> None:
    """Print what goes into a repository: each file and its size, or each folder if they are many."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    print(f"{to.repo_id} ({to.repo_type} repository, {'public' if to.public else 'private'})")
    lines = [(size_text(size), name) for name, size in sorted(sizes.items())]
    if len(sizes) > LISTED_ONE_BY_ONE:
        counts: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for name, size in sizes.items():
            folder = "/".join(name.split("/")[:2]) + "/" if name.count("/") > 1 else name
            folder = name.split("/")[0] + "/" if name.count("/") == 1 else folder
            counts[folder] += 1
            total[folder] += size
        lines = [
            (size_text(total[name]), name + (f"  {counts[name]} files" if name.endswith("/") else ""))
            for name in sorted(counts)
        ]
    for shown, name in lines:
        print(f"  {shown:>8}  {name}")
    print(f"  {size_text(sum(sizes.values())):>8}  in all, {len(sizes)} files")


def send(
    files: Mapping[str, Path],
    to: Repository,
    title: str,
    tag: str | None = None,
    token: str | None = None,
    waits_s: Sequence[float] = WAITS_S,
    *,
    delete_others: bool = True,
    initial: Collection[str] = (),
) -> Uploaded:
    """Upload (see ``hub_upload.upload``); faults of the Hub are ``InputError`` with what to do about them."""
    with advised(f"publishing to {to.repo_id}", token):
        api = api_for(token)
        patiently(api.whoami, "asking who we are", waits_s)  # a wrong token shows before hours of hashing
        return upload(api, to, hashed(files), title, tag, waits_s, delete_others=delete_others, initial=initial)


@contextmanager
def advised(doing: str, token: str | None = None) -> Iterator[None]:
    """Within this context, faults of the Hub become ``InputError`` with advice, and no token is repeated."""
    from huggingface_hub import get_token

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        known = explained(error, doing, token or get_token())
        if known is None:
            raise
        raise known from None  # the client's own traceback may quote request headers


def tell(done: Uploaded) -> None:
    """Print what was published."""
    print(
        f"published: {done.files} files, {size_text(done.bytes)} ({done.lfs_files} as LFS); sent now: "
        f"{done.sent_files}, deleted: {done.deleted_files}"
    )
    print("compared: every file there that was sent has the size and hash of the one here")
    print(f"{done.url} (commit {done.commit})")
