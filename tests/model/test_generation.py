"""Answers of the default model: what a transformers user expects of generate, stream and score."""

import threading

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, ModelMismatchError, QueryError, WindowExceededError
from shared_context.model.generation import Detokenizer

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
    injected, pasted, none = (model.score(QUESTION, "21:47", context=c) for c in (selection, TEXT, None))
    assert injected < none - 0.5
    assert abs(injected - pasted) < 0.1


def test_a_batch_is_scored_as_each_of_it_alone(model, selection):
    questions = [QUESTION, "Who is the harbour master of the whole north coast?", QUESTION, "Who is it?"]
    answers = ["21:47", "Ingrid Vale", "at the north gate", "Ingrid"]
    contexts = [selection, selection, None, TEXT]
    alone = [model.score(q, a, context=c) for q, a, c in zip(questions, answers, contexts, strict=True)]
    assert model.score(questions, answers, context=contexts, batch_size=3) == pytest.approx(alone, abs=0.05)
    with pytest.raises(ConfigError, match="4 questions"):
        model.score(questions, answers[:2], context=contexts)


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
        for ask in (other.generate, other.stream, lambda q, context: other.score(q, "21:47", context=context)):
            with pytest.raises(ModelMismatchError, match="selected for .* Select from a store"):
                ask(QUESTION, context=selection)


def test_sampling_repeats_under_a_seed_and_leaves_the_processs_random_state_alone(model):
    import torch

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
