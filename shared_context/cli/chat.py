"""`shared-context chat`: a conversation over a store, with memory."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_context.cli import output, session
from shared_context.cli.ask import as_dict, print_figures, print_stream
from shared_context.cli.options import (
    AdapterOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    FilterOption,
    FineOption,
    KvLimitOption,
    MaxNewTokensOption,
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    PolicyOption,
    PrefilterOption,
    parse_bytes,
    parse_filters,
)
from shared_context.errors import SharedContextError

if TYPE_CHECKING:
    from shared_context import ConversationMemory, SharedLLMContextStore


def chat(
    path: PlaceArgument,
    conversation: Annotated[
        str | None,
        typer.Option(
            "--conversation",
            metavar="NAME",
            help="Go on with this conversation, which the store keeps; without a name it is forgotten at the end.",
        ),
    ] = None,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: BudgetOption = 1024,
    fine: FineOption = None,
    policy: PolicyOption = None,
    filters: FilterOption = None,
    prefilter: PrefilterOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    kv_limit: KvLimitOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per answer on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Talk with the documents of a store; Ctrl-D or Ctrl-C ends it.

    From a pipe every line is a question. One that cannot be answered is named on stderr, the next ones are answered
    all the same, and the exit code is 1.
    """
    wanted = parse_filters(filters)
    limit = parse_bytes(kv_limit, "--kv-limit")
    options = {"policy": policy, "fine": fine, "filters": wanted, "prefilter": prefilter}
    loading: session.Loading = {"adapter": adapter, "dtype": dtype, "device": device}
    failed = False
    with (
        session.open_store(path, model, limit, namespace=namespace, **loading) as store,
        _memory(store, conversation) as memory,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if not store.ids(wanted):
            output.nothing_found(path, wanted)
        for question in _questions(as_json):
            try:
                _answer(store, memory, question, options, budget, max_new_tokens, as_json)
            except SharedContextError as error:
                output.complain(str(error))
                failed = True
        output.messages().print(
            f"{output.kept(store.stats()['kv_cache']['disk'])} (--kv-limit)", style="dim", soft_wrap=True
        )
    if failed:
        raise typer.Exit(output.FAILED)


@contextlib.contextmanager
def _memory(store: SharedLLMContextStore, name: str | None) -> Iterator[ConversationMemory]:
    """The conversation of this name, or one that leaves nothing behind."""
    if name is not None:
        yield store.conversation(name)
        return
    from shared_context import SharedLLMContextStore

    with SharedLLMContextStore(store.model, config=store.config, embedder=store.embedder) as in_memory:
        yield in_memory.conversation("chat")


def _questions(as_json: bool) -> Iterator[str]:
    """What is asked, a line at a time; blank lines are passed over."""
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        with contextlib.suppress(ImportError):  # history and line editing, where the system has them
            import readline  # noqa: F401
        lines: Iterator[str] = iter(_prompt, None)
    else:
        lines = iter(sys.stdin)
    return (line.strip() for line in lines if line.strip())


def _prompt() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _answer(
    store: SharedLLMContextStore,
    memory: ConversationMemory,
    question: str,
    options: dict[str, Any],
    budget: int,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Answer one question and remember both."""
    from shared_context.store.turns import next_turn

    started = time.perf_counter()
    messages, context, passages = next_turn(store, memory, question, budget=budget, **options)
    select_seconds = time.perf_counter() - started
    if as_json:
        completion = store.model.complete(messages, context=context, max_new_tokens=max_new_tokens)
        print(json.dumps(as_dict(question, completion, passages, select_seconds)), flush=True)
    else:
        completion = print_stream(store.model.stream(messages, context=context, max_new_tokens=max_new_tokens))
        print_figures(completion, budget, select_seconds)
    memory.append("user", question)
    memory.append("assistant", completion.text)
