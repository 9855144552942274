"""Names of users from names that others gave: subjects of tokens, users of the cluster.

Users have 1 to 128 characters of `A-Za-z0-9._:@-`. A subject that fits stays as it is; any other becomes what is
readable of it and a digest, so that two subjects never become one user.
"""

import hashlib
import re
from typing import Final

MOST_CHARS: Final = 128
_DIGEST_CHARS: Final = 32
_FITS: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._:@-]+")
# A subject that looks like the outcome of another one's change must not be that user.
_LOOKS_CHANGED: Final = re.compile(r"\.[0-9a-f]{32}$")


def user_of(subject: str, prefix: str = "") -> str:
    """Return the user a subject stands for, `prefix` (of allowed characters) before it."""
    name = prefix + subject
    if _FITS.fullmatch(name) and not _LOOKS_CHANGED.search(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]
    return f"{_FOREIGN.sub('-', name)[: MOST_CHARS - _DIGEST_CHARS - 1]}.{digest}"
