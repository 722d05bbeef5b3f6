"""Lists in parts."""

from typing import Any

from shared_context.serve.faults import Refusal


def page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A part of a list in OpenAI's form.

    Raises:
        Refusal: the limit is none.
    """
    if limit < 1:
        raise Refusal(400, f"limit: {limit} is too few; ask for 1 or more.", param="limit")
    ids = [one["id"] for one in found]
    begin = ids.index(after) + 1 if after in ids else 0
    shown = found[begin : begin + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": begin + limit < len(found),
    }
