"""How the command starts a vLLM of its own; that it answers is tested in tests/vllm."""

import pytest

from shared_context.serve.vllm_process import API_SERVER, launched_by


@pytest.mark.parametrize(
    ("first_line", "python"),
    [
        ("#!/opt/vllm/bin/python3.12\n", "/opt/vllm/bin/python3.12"),
        ("#! /opt/vllm/bin/python -E\n", "/opt/vllm/bin/python"),
        ("#!/bin/sh\n", None),
        ("#!/usr/bin/env python3\n", None),
        ("\x7fELF", None),
        ("", None),
    ],
)
def test_a_script_of_python_is_started_by_its_python(tmp_path, first_line, python):
    command = tmp_path / "vllm"
    command.write_text(first_line)
    begun = [str(command), "serve"] if python is None else [python, "-m", API_SERVER]
    assert launched_by(command) == begun


def test_a_python_starts_the_server_itself(tmp_path):
    assert launched_by(tmp_path / "python3.11") == [str(tmp_path / "python3.11"), "-m", API_SERVER]
