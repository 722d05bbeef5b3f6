"""`python -m shared_context` is the `shared-context` command, where that is not on the path."""

from shared_context.cli.main import app

if __name__ == "__main__":
    app()
