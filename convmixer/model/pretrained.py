"""Published weights from the Hugging Face hub."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from convmixer.errors import UsageError, one_line

WEIGHTS = "model.safetensors"
TIMEOUT_SECONDS = 10.0


def published_weights(variant: str, hub_id: str | None) -> Path:
    """Return the file of the published weights of a variant, fetched if it is not in the cache.

    Args:
        variant: the name of the variant.
        hub_id: its repository on the hub, None if it has none.

    Raises:
        UsageError: there are none, huggingface_hub is missing, or the hub cannot be reached.
    """
    if hub_id is None:
        raise UsageError(
            f"pretrained: no weights of {variant} are published; give the path of your own"
        )
    page = f"https://huggingface.co/{hub_id}"
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError:
        raise UsageError(
            f"pretrained: fetching {page} needs the package huggingface_hub, which is missing; "
            "give the path of a file of weights instead"
        ) from None
    cached = try_to_load_from_cache(hub_id, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Without a network the hub's client tries again for most of a minute.
        with urllib.request.urlopen(page, timeout=TIMEOUT_SECONDS):
            return Path(hf_hub_download(hub_id, WEIGHTS))
    except Exception as error:  # The hub's client lets errors of several libraries through.
        reason = getattr(error, "reason", None) or one_line(error)
        raise UsageError(
            f"pretrained: cannot fetch {WEIGHTS} of {page} ({str(reason)[:200]}); give the path of "
            "a file of weights instead"
        ) from None
