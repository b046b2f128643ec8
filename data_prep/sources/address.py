"""The address of a remote file, such as `s3://bucket/train.tar`, and the text that users write for one or several."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from urllib.parse import unquote, urlsplit

from udkd.utils.errors import ConfigError, DataError

HTTP = ("http", "https")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.+)", re.DOTALL)
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/[^/].*", re.DOTALL)
_BRACES = re.compile(r"\{(?P<inside>[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")
MAX_EXPANDED = 100_000


@dataclass(frozen=True, repr=False)
class Address:
    """A remote file. url: as the user wrote it. As text, it has neither the credentials nor the query, which may be secret."""

    url: str

    @property
    def scheme(self) -> str:
        """`https`, `s3`, …"""
        return self.url.partition("://")[0].lower()

    @property
    def parts(self) -> tuple[str, ...]:
        """The host or bucket, then the folders, then the file's name."""
        rest = self.url.partition("://")[2]
        if self.scheme in HTTP:
            rest = unquote(re.split(r"[?#]", rest, maxsplit=1)[0])
        host, slash, path = rest.partition("/")
        return tuple(part for part in f"{host.rpartition('@')[2]}{slash}{path}".split("/") if part)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.parts[-1]

    def __truediv__(self, name: str) -> "Address":
        """The address of a file in this folder. What follows a `?`, such as a signature, stays at the end."""
        path = re.split(r"[?#]", self.url, maxsplit=1)[0] if self.scheme in HTTP else self.url
        return Address(f"{path.rstrip('/')}/{name}{self.url[len(path) :]}")

    def __str__(self) -> str:
        query = "?…" if self.scheme in HTTP and "?" in self.url else ""
        return f"{self.scheme}://{'/'.join(self.parts)}{query}"

    __repr__ = __str__

    def redacted(self, text: str) -> str:
        """A text of another program without this URL and the secrets in it."""
        parsed = urlsplit(self.url)
        for secret in (self.url, parsed.netloc.rpartition("@")[0], parsed.password, parsed.query):
            text = text.replace(secret, "…") if secret else text
        return text


Location = Path | Address
"""Where a file or a folder is."""


def names_of(location: Location) -> tuple[str, ...]:
    """The names of the folders above a file or folder and its own, without links; at least two."""
    return ("", *location.parts) if isinstance(location, Address) else location.resolve().parts


def is_file(location: Location) -> bool:
    """Whether a location is a file; every address is taken for one."""
    return isinstance(location, Address) or location.is_file()


def location_of(text: str | PathLike[str]) -> Location:
    """The path or the address that a user wrote; `file://` is a path. Raises ConfigError for an unknown protocol."""
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        collapsed = _COLLAPSED.fullmatch(str(text))
        if collapsed and _is_known(collapsed[1].lower()) and not Path(text).exists():
            raise ConfigError(f"{collapsed[1]}:/… is an address that became a path; expected text; give it as a str")
        return Path(text)
    scheme = match[1].lower()
    if scheme in ("file", "local"):
        return Path(unquote(match[2]))
    if not _is_known(scheme):
        raise ConfigError(
            f"{Address(str(text))} has an unknown protocol; expected a path, http://, https://, s3://, gs://, hf:// or another "
            "protocol of fsspec; check the address"
        )
    return Address(str(text))


def require_path(out: str | PathLike[str]) -> Path:
    """The path of a folder to write. Raises ConfigError for an address."""
    match = _ADDRESS.fullmatch(str(out)) or _COLLAPSED.fullmatch(str(out))
    if match and _is_known(match[1].lower()) and not Path(out).exists():
        raise ConfigError(f"{match[1]}://… is an address; expected a folder on this machine to write; add --out DATA")
    return Path(out)


def expand(address: Address) -> list[Address]:
    """The addresses of a pattern: braces as in bash, `{000..146}` or `{a,b}`, and globs where the file system can list.

    Raises DataError for globs of http and for globs that match nothing, ConfigError for a file system that is not installed.
    """
    expanded = [Address(url) for url in _expand_braces(address.url)]
    return [each for pattern in expanded for each in _expand_glob(pattern)]


def require_file_system(address: Address) -> None:
    """Raise ConfigError, naming the extra, if the package for an address is not installed."""
    if address.scheme in HTTP:
        return
    import fsspec

    try:
        fsspec.get_filesystem_class(address.scheme)
    except ImportError as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"{address} needs a package that is not installed ({text}); expected it; pip install 'udkd[remote]'"
        ) from None


def _is_known(scheme: str) -> bool:
    if scheme in HTTP:
        return True
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def _expand_braces(text: str) -> Iterator[str]:
    match = next((match for match in _BRACES.finditer(text) if _is_pattern(match["inside"])), None)
    if match is None:
        yield text
        return
    for each in _alternatives(match["inside"]):
        yield from _expand_braces(text[: match.start()] + each + text[match.end() :])


def _is_pattern(inside: str) -> bool:
    return "," in inside or _RANGE.fullmatch(inside) is not None


def _alternatives(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= MAX_EXPANDED:
        raise DataError(f"{{{inside}}} stands for more than {MAX_EXPANDED:,} files; expected fewer; check the range")
    width = max(map(len, numbers.groups())) if any(len(n) > 1 and n[0] == "0" for n in numbers.groups()) else 0
    return (
        [f"{n:0{width}d}" for n in range(first, last + 1)]
        if first <= last
        else [f"{n:0{width}d}" for n in range(first, last - 1, -1)]
    )


def _expand_glob(address: Address) -> list[Address]:
    if address.scheme in HTTP:
        if _GLOB.search("/".join(address.parts)):
            raise DataError(f"{address} is a pattern, and http cannot list files; expected names; write {{000..146}} in braces")
        return [address]
    require_file_system(address)
    if not _GLOB.search(address.url):
        return [address]
    from fsspec.core import url_to_fs

    try:
        files, pattern = url_to_fs(address.url)
        found = sorted(files.glob(pattern))
    except Exception as error:  # each file system raises its own
        raise unreadable(address, error) from None
    if not found:
        raise DataError(f"{address} matches no file; expected at least one; check the pattern")
    return [Address(files.unstrip_protocol(path)) for path in found]


def unreadable(address: Address, error: BaseException) -> DataError:
    """The error for an address that cannot be read, from one of a file system."""
    text = address.redacted(" ".join(str(error).split()))[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(f"{address} does not exist; expected a file; check the address")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{address} is a folder; expected tars; name them, such as {address}/*.tar")
    return DataError(f"{address} cannot be read ({text}); expected a file that you may read; check address and credentials")
