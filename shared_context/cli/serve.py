"""`shared-context serve`: stores behind an OpenAI-compatible endpoint; `shared-context keys`: who may ask."""

from __future__ import annotations

import ipaddress
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli import output, session
from shared_context.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    FilterOption,
    KvLimitOption,
    parse_bytes,
    parse_filters,
)

KeysArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File of the keys.", show_default=False)]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the key.", show_default=False)]

IN_PROCESS, BY_VLLM = 4, 32
"""Answers at a time where nothing is said."""

keys_app = typer.Typer(help="API keys of `shared-context serve`.", no_args_is_help=True)


def serve(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE...",
            help="Folders of stores. Requests call each by its folder's name without ending, or by NAME=FOLDER.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Answer only who has a key of this file (shared-context keys)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Name or folder of the model; by default each store's own.")
    ] = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: Annotated[int, typer.Option("--budget", help="KV entries of a context where a request names none.")] = 1024,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Tokens of an answer where a request names no limit.")
    ] = 256,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel", help="Answers that are written at a time. [4, with --engine 32]", show_default=False
        ),
    ] = None,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait; others are refused with 429.")] = 64,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Where uploaded files go, and stores that requests make. Without it no stores are made, and files are "
            "forgotten at the end.",
        ),
    ] = None,
    kv_limit: KvLimitOption = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="URL|COMMAND",
            help="Have vLLM write the answers: the address of one that runs with the connector, or the command to "
            'start one with, such as vllm or "/path/to/its/python --gpu-memory-utilization 0.5".',
        ),
    ] = None,
    selections: Annotated[
        Path | None,
        typer.Option(
            "--selections", metavar="FOLDER", help="Through which a vLLM that runs is handed what is injected."
        ),
    ] = None,
    engine_compresses: Annotated[
        bool,
        typer.Option("--engine-compresses", help="Have vLLM compute the keys and values of chunks, too."),
    ] = False,
    engine_timeout: Annotated[
        float, typer.Option("--engine-timeout", metavar="SECONDS", help="For which vLLM may be silent.")
    ] = 60.0,
) -> None:
    """Answer over HTTP as OpenAI does: one model for each store.

    Ctrl-C, or SIGTERM, finishes what is asked and ends.
    """
    try:
        import uvicorn

        from shared_context.serve import ServeConfig, create_app
        from shared_context.serve.access import Keys
        from shared_context.serve.logs import LOGGING
        from shared_context.serve.opening import named, only_model, open_stores
        from shared_context.serve.vllm import VLLM
        from shared_context.serve.vllm_process import vllm_server
    except ImportError as error:
        output.complain(str(error))
        raise typer.Exit(output.FAILED) from error
    if keys is None and not _is_loopback(host):
        raise typer.BadParameter(
            f"{host} can be reached from other machines, and everybody could ask: give --keys FILE, or listen on "
            "127.0.0.1.",
            param_hint="--host",
        )
    by_address = engine is not None and engine.startswith(("http://", "https://"))
    if by_address is not (selections is not None):
        raise typer.BadParameter(
            "give the folder that vLLM's connector reads together with the address of a vLLM that runs.",
            param_hint="--selections",
        )
    if engine_compresses and engine is None:
        raise typer.BadParameter(
            "name the engine that is to compute chunks: --engine.", param_hint="--engine-compresses"
        )
    parallel = parallel or (IN_PROCESS if engine is None else BY_VLLM)
    config = ServeConfig(
        parallel=parallel, queue=queue, budget=budget, max_tokens=max_tokens, engine_timeout=engine_timeout
    )
    limit = parse_bytes(kv_limit, "--kv-limit")
    known = Keys(keys) if keys is not None else None
    load = partial(session.load_model, adapter=adapter, dtype=dtype, device=device)
    # uvicorn hands the signal on when it has finished; by itself that would end the process before stores are closed.
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as opened:
        output.silence_libraries()
        served = open_stores(named(stores), opened, load=load, model=model, kv_limit=limit)
        # Whoever has a key may call the server as he likes.
        hosts = None if known is not None else {"localhost", "127.0.0.1", "::1", host}
        vllm = None
        if engine is not None:
            model_of_all = only_model(served)
            if selections is not None:  # by address
                address, folder = engine, selections
            else:
                address, folder = opened.enter_context(vllm_server(engine, model_of_all, compresses=engine_compresses))
            vllm = VLLM(address, folder, config.engine_timeout)
            if engine_compresses:
                vllm.compress_for(model_of_all)
        app = create_app(served, config=config, keys=known, data=data, hosts=hosts, vllm=vllm)
        uvicorn.run(app, host=host, port=port, log_config=LOGGING, access_log=False, server_header=False)


def _end(number: int, frame: object) -> None:
    raise SystemExit(0)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@keys_app.command("add", epilog=output.EXIT_CODES)
def add(
    file: KeysArgument,
    name: NameArgument,
    store: Annotated[
        list[str] | None, typer.Option("--store", help="Only this store. Several; by default all of them.")
    ] = None,
    filters: FilterOption = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", help="Of each store the key has this namespace only, a store of its own in it."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="May add and remove documents.")] = False,
    operate: Annotated[
        bool, typer.Option("--operate", help="May make and delete stores and see the server's figures.")
    ] = False,
) -> None:
    """Make a key and print it; the file keeps its hash only."""
    from shared_context.serve.access import add_key

    wanted = parse_filters(filters)
    print(add_key(file, name, stores=store, filters=wanted, namespace=namespace, writes=write, operates=operate))


@keys_app.command("revoke", epilog=output.EXIT_CODES)
def revoke(file: KeysArgument, name: NameArgument) -> None:
    """Forget a key; a server that runs refuses it from its next request on."""
    from shared_context.serve.access import revoke_key

    revoke_key(file, name)


@keys_app.command("list", epilog=output.EXIT_CODES)
def list_keys(file: KeysArgument) -> None:
    """What each key may do, as JSON."""
    from shared_context.serve.access import read_keys

    output.print_json([{k: v for k, v in record.items() if k != "sha256"} for record in read_keys(file)])
