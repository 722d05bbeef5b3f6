"""Run by vLLM's own Python: answers the cases of a file, and writes what came of each into another one.

python answers.py MODEL SELECTIONS CASES ANSWERS DTYPE
"""

import json
import sys


def main(model: str, selections: str, cases: str, answers: str, dtype: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(
        kv_connector="SharedContextConnector",
        kv_connector_module_path="shared_context.integrations.vllm.connector",
        kv_role="kv_consumer",
        kv_connector_extra_config={"selections": selections},
    )
    # So many tokens a step are fewer than some prompts have, which are computed in several then.
    llm = LLM(
        model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=512,
        kv_transfer_config=transfer,
    )
    with open(cases) as file:
        asked = json.load(file)
    prompts, sampling = [], []
    for case in asked:
        prompt = {"prompt_token_ids": case["token_ids"]}
        params = SamplingParams(temperature=0, max_tokens=case["max_tokens"])
        if case["transfer"] is not None:
            params.extra_args = {"kv_transfer_params": case["transfer"]}
        if case["salt"] is not None:
            prompt["cache_salt"] = case["salt"]
        prompts.append(prompt)
        sampling.append(params)
    said = []
    for done in llm.generate(prompts, sampling, use_tqdm=False):
        (output,) = done.outputs
        ids = list(output.token_ids)
        why = output.finish_reason
        said.append({"text": output.text, "token_ids": ids, "finish_reason": why, "cached": done.num_cached_tokens})
    with open(answers, "w") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
