"""Links from one page of a list to the next."""

from urllib.parse import urlencode

from fastapi import Request


def next_link(request: Request, public_url: str, cursor: str) -> str:
    """The Link header that leads to the page after `cursor`, with every other parameter of this request kept.

    The URL is absolute, as huggingface_hub follows it verbatim.
    """
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    path = request.scope["raw_path"].decode("ascii")
    return f'<{public_url}{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
