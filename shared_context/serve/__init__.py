"""An OpenAI-compatible endpoint over stores: ``shared-context serve``, or :func:`create_app` in a server of one's own.

Needs the extra ``serve``. Arrows run one way: app -> routes -> answering -> engine; none of them computes anything that
the store and the model do not.
"""

try:
    import fastapi  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"serving needs FastAPI and what goes with it: pip install 'sharedllm[serve]' ({error})"
    ) from error

from shared_context.serve.app import create_app
from shared_context.serve.settings import ServeConfig

__all__ = ["ServeConfig", "create_app"]
