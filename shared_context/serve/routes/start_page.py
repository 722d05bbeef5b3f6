"""The page at ``/``: three static files, which anybody may read, for nothing of a store is in them."""

from pathlib import Path

from fastapi import APIRouter, Response

from shared_context.store.shown_document import STYLE

FOLDER = Path(__file__).parent.parent / "page"
HEADERS = {
    # Nothing comes from elsewhere and nothing goes there; no script but the page's own runs, whatever a document says.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


def _part(name: str, media_type: str, before: str = "") -> None:
    text = before + (FOLDER / name).read_text(encoding="utf-8")

    async def part() -> Response:
        return Response(text, media_type=media_type, headers=HEADERS)

    router.add_api_route("/" if name == "index.html" else f"/page/{name}", part, response_class=Response)


_part("index.html", "text/html")
_part("page.js", "text/javascript")
_part("style.css", "text/css", STYLE)
