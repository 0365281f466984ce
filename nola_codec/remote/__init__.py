"""Read and write files behind URLs: `is_url`, `open_url`, `fetch`, `publish`, and `accepts_urls` for functions.

`addresses.py` tells URLs from paths, hides secrets in them, and knows the addresses of the Hugging Face Hub. A file
that can be read is a `RemoteFile` (`contract.py`); `http_files.py` has those of HTTP and of the Hub,
`fsspec_files.py` those of every other protocol. `transfer.py` retries and resumes, and `range_file.py` reads a file in
ranges, as a stream.

`fetching.py` copies files and directories into the disk cache, `hub_fetching.py` lets huggingface_hub do that;
`listing.py` lists what lies behind a URL, and `selection.py` picks the files of a directory that are needed.
`publishing.py` uploads what was written. `arguments.py` lets a function that takes paths take URLs. `failures.py`
turns the errors of other packages into ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.lazy import lazy_names
from nola_codec.remote.addresses import is_url, shown_url
from nola_codec.remote.arguments import accepts_urls, local_copies

if TYPE_CHECKING:
    from nola_codec.remote.fetching import fetch, local_path
    from nola_codec.remote.publishing import publish, published_bytes
    from nola_codec.remote.range_file import open_url

# Most runs of the program meet no URL, and need not load what reads one.
_HOME = {
    "fetch": "fetching",
    "local_path": "fetching",
    "open_url": "range_file",
    "publish": "publishing",
    "published_bytes": "publishing",
}

__all__ = [
    "accepts_urls",
    "fetch",
    "is_url",
    "local_copies",
    "local_path",
    "open_url",
    "publish",
    "published_bytes",
    "shown_url",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
