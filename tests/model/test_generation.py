"""Answers of the default model: what a transformers user expects of generate, stream and score."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError, ModelMismatchError, QueryError, WindowExceededError
from shared_context.model.context import ContextKV
from shared_context.model.generation import Clock, Detokenizer
from shared_context.model.prompt import Prompt

TEXT = "The night shift starts at 21:47 at the north gate. The harbour master is Ingrid Vale."
QUESTION = "When does the night shift start?"


@pytest.fixture(scope="module")
def selection(model):
    """The whole text, injected."""
    store = SharedLLMContextStore(model, embedder=None)
    store.add(TEXT, id="gate")
    return store.select(QUESTION)


def test_the_answer_comes_from_the_injected_context(model, selection):
    assert "21:47" in model.generate(QUESTION, context=selection, max_new_tokens=24)
    assert "21:47" not in model.generate(QUESTION, max_new_tokens=24)


def test_the_right_context_makes_the_answer_likelier_as_much_as_pasted_text_does(model, selection):
    injected, pasted, none = (model.nll(QUESTION, "21:47", context=c) for c in (selection, TEXT, None))
    assert injected < none - 0.5
    assert abs(injected - pasted) < 0.1


def test_a_batch_is_scored_as_each_of_it_alone(model, selection):
    questions = [QUESTION, "Who is the harbour master of the whole north coast?", QUESTION, "Who is it?"]
    answers = ["21:47", "Ingrid Vale", "at the north gate", "Ingrid"]
    contexts = [selection, selection, None, TEXT]
    alone = [model.nll(q, a, context=c) for q, a, c in zip(questions, answers, contexts, strict=True)]
    assert model.nll(questions, answers, context=contexts, batch_size=3) == pytest.approx(alone, abs=0.05)
    with pytest.raises(ConfigError, match="4 questions"):
        model.nll(questions, answers[:2], context=contexts)


def test_a_completion_says_what_it_took(model, selection):
    completion = model.complete(QUESTION, context=selection, max_new_tokens=4)
    assert completion.context_entries == selection.kv_entries == len(model.tokenize(TEXT))
    assert (completion.completion_tokens, completion.finish_reason) == (4, "length")
    assert 0 < completion.time_to_first_token <= completion.seconds
    pasted = model.complete(QUESTION, context=TEXT, max_new_tokens=4)
    assert pasted.prompt_tokens == completion.prompt_tokens + selection.kv_entries
    assert pasted.context_entries == 0


def test_the_pieces_of_a_stream_join_to_the_answer(model, selection):
    stream = model.stream(QUESTION, context=selection, max_new_tokens=24)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.completion.text == model.generate(QUESTION, context=selection, max_new_tokens=24)


@pytest.mark.parametrize("stop", ["21:", ["north", ":4"]])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(model, selection, stop):
    completion = model.complete(QUESTION, context=selection, max_new_tokens=24, stop=stop)
    whole = model.generate(QUESTION, context=selection, max_new_tokens=24)
    first = min(whole.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in whole)
    assert (completion.text, completion.finish_reason) == (whole[:first], "stop")
    assert "".join(model.stream(QUESTION, context=selection, max_new_tokens=24, stop=stop)) == whole[:first]


@pytest.mark.parametrize("begin", [0, 3])
def test_a_long_stop_string_is_held_back_from_the_first_piece_on(model, begin):
    whole = model.generate(QUESTION, max_new_tokens=24)
    stop = whole[begin : len(whole) // 2]
    assert len(stop) > 12
    assert "".join(model.stream(QUESTION, max_new_tokens=24, stop=stop)) == whole[:begin]


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerFast:
    """Words with their space in front, which the decoder drops at the beginning, and bytes for all else, as Llama 2."""
    words = ["<s>", "▁def", "▁f", ":", "<0x0A>", "▁▁▁", "▁x", "<0xE6>", "<0x97>", "<0xA5>"]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def test_spaces_and_characters_of_several_tokens_come_through_a_stream_whole(sentencepiece):
    tokens = [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 2, 7, 8]
    text = Detokenizer(sentencepiece)
    pieces = [text.put(token) for token in tokens]
    assert pieces[:6] == ["def", " f", ":", "\n", "   ", " x"]
    assert pieces[9:12] == ["", "", "日"]
    assert "".join([*pieces, text.end()]) == sentencepiece.decode(tokens) == "def f:\n    x\n    x日 f��"


def test_a_selection_is_read_by_the_model_it_was_made_for_alone(make_small_model):
    mine, other = make_small_model(seed=0), make_small_model(seed=1)
    with SharedLLMContextStore(mine, embedder=None) as store:
        store.add(TEXT, id="gate")
        selection = store.select(QUESTION)
        mine.generate(QUESTION, context=selection, max_new_tokens=2)
        for ask in (other.generate, other.stream, lambda q, context: other.nll(q, "21:47", context=context)):
            with pytest.raises(ModelMismatchError, match="selected for .* Select from a store"):
                ask(QUESTION, context=selection)


def test_sampling_repeats_under_a_seed_and_leaves_the_processs_random_state_alone(model):
    options = {"max_new_tokens": 12, "temperature": 1.5}
    state = torch.random.get_rng_state()
    first, again, other = (model.generate("Tell me a story.", seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_batch_mixes_questions_conversations_and_contexts(model, selection):
    conversation = [
        {"role": "user", "content": "Who is the harbour master?"},
        {"role": "assistant", "content": "Ingrid Vale."},
        {"role": "user", "content": QUESTION},
    ]
    options = {"max_new_tokens": 8}
    prompts, contexts = [QUESTION, conversation, "Say hello."], [selection, TEXT, None]
    together = model.generate(prompts, context=contexts, **options)
    assert together == [model.generate(p, context=c, **options) for p, c in zip(prompts, contexts, strict=True)]


def test_a_closed_stream_stops_generating(model):
    stream = model.stream("Count to a thousand.", max_new_tokens=400)
    next(stream)
    stream.close()
    assert stream.completion.completion_tokens < 400


def test_streams_and_answers_take_turns(model, selection):
    questions = [QUESTION, "Who is the harbour master?"]
    expected = [model.generate(q, context=selection, max_new_tokens=12) for q in questions]
    first, second = (model.stream(q, context=selection, max_new_tokens=12) for q in questions)
    begun = next(first), next(second)
    assert model.generate(QUESTION, context=selection, max_new_tokens=12) == expected[0]
    assert [begun[0] + "".join(first), begun[1] + "".join(second)] == expected


def test_a_stream_samples_what_the_whole_answer_samples(model):
    options = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3}
    assert "".join(model.stream("Tell me a story.", **options)) == model.generate("Tell me a story.", **options)


def test_do_sample_samples_at_temperature_1_within_the_limits_given(model):
    options = {"max_new_tokens": 12, "do_sample": True}
    sampled = model.generate("Tell me a story.", seed=1, **options)
    assert sampled == model.generate("Tell me a story.", seed=1, max_new_tokens=12, temperature=1.0)
    likeliest = model.generate("Tell me a story.", max_new_tokens=12)
    assert sampled != likeliest
    for limit in ({"top_k": 1}, {"top_p": 1e-6}):
        assert model.generate("Tell me a story.", seed=1, **limit, **options) == likeliest
    assert model.generate("Tell me a story.", max_new_tokens=12, do_sample=False, top_k=5) == likeliest


def test_stop_strings_are_the_stop(model, selection):
    options = {"context": selection, "max_new_tokens": 24, "stop_strings": ["21:"]}
    expected = model.complete(QUESTION, context=selection, max_new_tokens=24, stop="21:")
    completion = model.complete(QUESTION, **options)
    assert (completion.text, completion.finish_reason) == (expected.text, "stop")
    assert "".join(model.stream(QUESTION, **options)) == expected.text


def test_threads_get_the_answers_they_asked_for(model, selection):
    questions = [QUESTION, "Who is the harbour master?"]
    expected = [model.generate(q, context=selection, max_new_tokens=12) for q in questions]
    found = {}
    threads = [
        threading.Thread(target=lambda q=q: found.update({q: model.generate(q, context=selection, max_new_tokens=12)}))
        for q in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[q] for q in questions] == expected


def test_what_does_not_fit_the_window_is_refused_with_the_numbers(model, selection):
    with pytest.raises(WindowExceededError, match=r"reads 8192 tokens.*25 injected, 8192 of answer"):
        model.generate(QUESTION, context=selection, max_new_tokens=8192)
    with pytest.raises(WindowExceededError, match="of prompt"):
        model.check_window("word " * 9000)
    for prompt, context in ((QUESTION, "word " * 200_000), ("word " * 200_000, selection)):
        with pytest.raises(WindowExceededError, match=r"prompt and pasted context have 1,000,0\d\d characters"):
            model.generate(prompt, context=context)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"prompt": "  "}, QueryError, "empty"),
        ({"prompt": [{"role": "user"}]}, ConfigError, "message={'role': 'user'}"),
        ({"prompt": [{"role": "user", "content": None}]}, ConfigError, "'content': None"),
        ({"prompt": [["hello"]]}, ConfigError, "message='hello'"),
        ({"prompt": "hi", "max_new_tokens": 0}, ConfigError, "max_new_tokens=0"),
        ({"prompt": "hi", "temperature": -1}, ConfigError, "temperature=-1"),
        ({"prompt": "hi", "temperature": 0.7, "do_sample": False}, ConfigError, "temperature=0.7: do_sample=False"),
        ({"prompt": "hi", "temperature": 0.7, "top_p": 0}, ConfigError, "top_p=0"),
        ({"prompt": "hi", "temperature": 0.7, "top_k": -1}, ConfigError, "top_k=-1"),
        ({"prompt": "hi", "no_such_option": 1}, ConfigError, "no_such_option"),
        ({"prompt": "hi", "context": 7}, ConfigError, "context is a int"),
        ({"prompt": ["a", "b"], "context": ["x"]}, ConfigError, "there are 2 prompts"),
        ({"prompt": None}, ConfigError, "prompt is a NoneType"),
        ({"prompt": []}, QueryError, "no prompt"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": " "}]}, QueryError, "last message"),
        ({"prompt": [{"role": "assistant", "content": ""}]}, QueryError, "empty"),
        ({"prompt": "half \ud83d"}, QueryError, "U\\+D83D, at character 5"),
        ({"prompt": [{"role": "user\udc00", "content": "a"}]}, QueryError, "role of message 0 has a lone surrogate"),
        ({"prompt": "hi", "context": "half \ud83d"}, QueryError, "context has a lone surrogate"),
        ({"prompt": "<s>hi \ud83d", "formatted": True}, QueryError, "lone surrogate"),
        ({"prompt": "hi", "temperature": "hot"}, ConfigError, "temperature='hot'"),
        ({"prompt": "hi", "temperature": float("nan")}, ConfigError, "temperature=nan"),
        ({"prompt": "hi", "max_new_tokens": 2.5}, ConfigError, "max_new_tokens=2.5"),
        ({"prompt": "hi", "stop": [3]}, ConfigError, "stop=3"),
        ({"prompt": "hi", "stop": 3}, ConfigError, "stop=3"),
        ({"prompt": b"hi"}, ConfigError, "prompt is a bytes"),
        ({"prompt": "hi", "seed": "x", "temperature": 1.0}, ConfigError, "seed='x'"),
        ({"prompt": "hi", "seed": 1 << 70}, ConfigError, "seed=1180591620717411303424"),
        ({"prompt": "hi", "num_beams": 0}, ConfigError, "num_beams=0"),
        ({"prompt": "hi", "min_new_tokens": "x"}, ConfigError, "min_new_tokens='x'"),
        ({"prompt": "hi", "num_beams": 2, "num_return_sequences": 3}, ConfigError, "num_return_sequences"),
        ({"prompt": "hi", "repetition_penalty": float("nan")}, ConfigError, "repetition_penalty"),
        ({"prompt": ["hi"], "bad_words_ids": []}, ConfigError, "bad_words_ids"),
        ({"prompt": ["hi"], "return_dict_in_generate": True}, ConfigError, "return_dict_in_generate=True"),
        ({"prompt": "hi", "grammar": 'start: "\ud83d"'}, QueryError, "grammar has a lone surrogate"),
        ({"prompt": "hi", "chat_template_kwargs": [1]}, ConfigError, "chat_template_kwargs"),
        ({"prompt": "hi", "enable_thinking": False}, ConfigError, "chat_template_kwargs"),
        ({"prompt": "hi", "chat_template_kwargs": {"tokenize": True}}, ConfigError, "tokenize"),
    ],
)
def test_a_wrong_argument_is_named(model, options, error, named):
    prompt = options.pop("prompt")
    with pytest.raises(error, match=named):
        model.generate(prompt, **options)


def test_a_failure_in_a_stream_reaches_its_reader(model, selection, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.hf_model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(model.stream(QUESTION, context=selection))


def test_a_stream_has_one_answer(model):
    with pytest.raises(ConfigError, match="num_beams=2"):
        model.stream(QUESTION, num_beams=2)


@pytest.mark.parametrize("ask", ["count_tokens", "tokenize"])
def test_what_is_no_text_is_named(model, ask):
    with pytest.raises(ConfigError, match="text is a int"):
        getattr(model, ask)(3)


@pytest.mark.parametrize("ask", ["count_tokens", "tokenize", "nll"])
def test_half_a_character_is_refused_wherever_text_is_taken(model, ask):
    call = {"nll": lambda text: model.nll("hi", text)}.get(ask) or getattr(model, ask)
    with pytest.raises(QueryError, match="lone surrogate"):
        call("half \ud83d")


def test_numbers_may_come_from_numpy(make_small_model):
    small = make_small_model()
    plain = dict(max_new_tokens=3, temperature=0.5, top_p=0.9, top_k=40, seed=7, repetition_penalty=1.5)
    kinds = (np.int64, np.float32, np.float64, np.int32, np.uint8, np.float16)
    theirs = {name: kind(value) for (name, value), kind in zip(plain.items(), kinds, strict=True)}
    plain = {name: value.item() for name, value in theirs.items()}
    assert small.generate("hi", **theirs) == small.generate("hi", **plain)
    assert small.generate(["hi", "ho"], batch_size=np.int64(2), **theirs) == small.generate(["hi", "ho"], **plain)
    small.check_window("hi", max_new_tokens=np.int64(3))


def test_the_lowest_temperature_takes_the_likeliest_token(make_small_model):
    small = make_small_model()
    assert small.generate("hi", max_new_tokens=8, temperature=1e-320) == small.generate("hi", max_new_tokens=8)


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}])
def test_stop_strings_end_each_row_of_a_batch(make_small_model, more):
    small = make_small_model()
    prompts, options = ["the lamp", "the log of the harbour", "hello"], {"max_new_tokens": 16, **more}
    whole = small.generate(prompts, **options)
    stop = [whole[0][4:7], whole[1][-3:]]
    completions = small.complete(prompts, stop=stop, **options)
    for text, found in zip(whole, completions, strict=True):
        ends = [text.index(s) for s in stop if s in text]
        assert more or found.text == text[: min(ends, default=None)]
        assert not any(s in found.text for s in stop)
    assert completions[0].finish_reason == "stop"
    assert completions[0].completion_tokens < 16


def test_a_control_token_as_a_stop_string_ends_the_answer(make_small_model):
    small = make_small_model()
    favoured = small.tokenizer.convert_tokens_to_ids("<|im_start|>")
    options = {"max_new_tokens": 8, "sequence_bias": [[[favoured], 1000.0]]}
    assert small.complete("hi", **options).completion_tokens == 8
    for prompt in ("hi", ["hi", "ho"]):
        completion = small.complete(prompt, stop="<|im_start|>", **options)
        first = completion[0] if isinstance(completion, list) else completion
        assert (first.completion_tokens, first.finish_reason) == (0, "stop")


def test_an_answer_ends_where_any_of_configuration_tokenizer_and_template_says_so(make_small_model):
    small = make_small_model()
    words = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    configured, of_tokenizer, of_template = small.tokenizer.convert_tokens_to_ids(words)
    chosen = copy.deepcopy(small.tokenizer)
    chosen.eos_token = words[1]
    chosen.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>\n{% endfor %}assistant: "
    base = copy.deepcopy(small.hf_model)
    base.generation_config.eos_token_id = configured
    model = SharedLLMModel(base, chosen, name="three ends")
    assert set(model.ends) == {configured, of_tokenizer, of_template}
    assert model.ends[0] == of_template
    for end in model.ends:
        others = [token for token in range(len(chosen)) if token != end]
        completion = model.complete("hi", max_new_tokens=4, suppress_tokens=others)
        assert (completion.text, completion.finish_reason) == ("", "stop")


def test_a_stream_goes_on_while_another_questions_chunks_are_encoded(make_small_model):
    small = make_small_model()
    asked, encoded = threading.Event(), threading.Event()

    class Cold:
        kv_entries = 3

        def key_values(self, room=None):
            asked.set()
            assert encoded.wait(60)
            ids = torch.arange(5, 8)
            return ContextKV(small.compressor.encode([ids]), [torch.arange(3)], ids)

    stream = small.stream("hello", max_new_tokens=4)
    question = threading.Thread(target=small.generate, args=("hi",), kwargs={"context": Cold(), "max_new_tokens": 2})
    question.start()
    assert asked.wait(60)
    reader = threading.Thread(target=list, args=(stream,))
    reader.start()
    reader.join(60)
    went_on = stream.completion is not None
    encoded.set()
    question.join(60)
    reader.join(60)
    assert went_on


def test_prefixes_that_are_kept_take_no_more_than_a_window_together(make_small_model):
    small = make_small_model(window=512)
    ids = torch.arange(5, 8)
    context = ContextKV(small.compressor.encode([ids]), [torch.arange(3)], ids)
    for number in range(4):
        prompt = Prompt(tuple(range(number, number + 200)), (7, 8))
        small.logits(prompt, type("Held", (), {"kv_entries": 3, "key_values": lambda self, room=None: context})())
    assert sum(len(prefix) for _, prefix in small._decoder._prefixes) <= 512


def test_a_clock_reads_its_time_when_the_device_is_done(monkeypatch):
    done = []
    monkeypatch.setattr(torch.accelerator, "synchronize", done.append)
    gpu = torch.device("cuda", 0)
    clock = Clock(gpu)
    clock(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 5))
    assert done == [gpu] and clock.first_token > 0
    Clock(torch.device("cpu")).elapsed()
    assert done == [gpu]


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_another_answer_goes_on_while_chunks_are_encoded_for_a_cold_question(make_small_model, injection):
    small = make_small_model(injection=injection)
    chunk = torch.arange(40, 80)
    (encoding,) = small.compressor.encode([chunk])
    begun, gone_on, answers = threading.Event(), threading.Event(), []

    class Cold:
        kv_entries = len(chunk)

        def key_values(self, room=None):
            begun.set()
            assert gone_on.wait(60), "the other answer stood still"
            return ContextKV([encoding], [torch.arange(len(chunk))], chunk)

    other = small.stream("Go on.", max_new_tokens=8, min_new_tokens=8)
    next(other)
    cold = threading.Thread(target=lambda: answers.append(small.generate("Why?", context=Cold(), max_new_tokens=1)))
    cold.start()
    assert begun.wait(60)
    list(other)
    gone_on.set()
    cold.join()
    assert len(answers) == 1


def test_streams_that_are_read_by_several_threads_share_their_steps_and_answer_as_each_alone(make_small_model):
    small = make_small_model()
    with SharedLLMContextStore(small, embedder=None) as store:
        store.add(TEXT * 8, id="gate")
        contexts = [None, store.select(QUESTION, budget=64), store.select(QUESTION, ratio=4), store.select("Ingrid")]
    asked = dict(zip(["hi", QUESTION, "Who is the harbour master?", "the log"], contexts, strict=True))
    options = {"max_new_tokens": 24, "min_new_tokens": 24}
    alone = [small.generate(question, context=context, **options) for question, context in asked.items()]
    rows = []
    small.hf_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda of: "".join(small.stream(of[0], context=of[1], **options)), asked.items()))
    assert found == alone
    assert max(rows) > 1


def test_the_former_name_of_nll_goes_on_with_a_warning(model):
    with pytest.warns(DeprecationWarning, match=r"called nll\(\).*0\.3"):
        former = model.score(QUESTION, "21:47")
    assert former == model.nll(QUESTION, "21:47")
