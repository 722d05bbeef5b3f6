"""Fixtures that every test may use: the embedded default model, loaded once, and the sample handbook."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from hypothesis import settings

# Without a GPU, kernels run in Triton's interpreter; it is chosen when triton is first imported, as transformers does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import AutoModelForCausalLM, LlamaConfig

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.questions import QuestionSet, read_questions
from shared_context.model.attention import ATTENTION

# How long an example of a property test takes says how busy the machine is, and nothing else.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

HANDBOOK = Path(__file__).parent.parent / "examples" / "data" / "handbook.md"
HANDBOOK_QUESTIONS = HANDBOOK.with_name("handbook-questions.json")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if sys.platform == "win32" and item.get_closest_marker("posix"):
        pytest.skip("needs what POSIX systems alone have")


@pytest.fixture(scope="session", autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> SharedLLMModel:
    """The embedded default model, untrained: what is tested with it holds for any model."""
    return SharedLLMModel.from_pretrained(adapter=None)


@pytest.fixture(scope="session")
def handbook() -> str:
    """The sample handbook's text, about 25,000 tokens."""
    return HANDBOOK.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def handbook_store(model: SharedLLMModel, handbook: str) -> SharedLLMContextStore:
    """The handbook in a store in memory; tests share it and must not change it."""
    store = SharedLLMContextStore(model)
    store.add(handbook, id="handbook")
    return store


@pytest.fixture(scope="session")
def handbook_questions() -> QuestionSet:
    """All of the handbook's questions."""
    return read_questions(HANDBOOK_QUESTIONS)


@pytest.fixture(scope="session")
def few_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQuAD file of the handbook's first six sections that have questions, each an article, about 2,500 tokens."""
    (article,) = json.loads(HANDBOOK_QUESTIONS.read_text(encoding="utf-8"))["data"]
    articles = [{"title": str(n), "paragraphs": [p]} for n, p in enumerate(article["paragraphs"][:6])]
    path = tmp_path_factory.mktemp("data") / "few.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_small_model(model: SharedLLMModel) -> Callable[..., SharedLLMModel]:
    """A float32 Llama of four layers with random weights, small enough to be trained in seconds.

    It has the default model's vocabulary and prompt format; options go to SharedLLMModel.
    """
    sizes = dict(
        vocab_size=len(model.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )

    def make(seed: int = 0, window: int = 2048, **options: object) -> SharedLLMModel:
        torch.manual_seed(seed)
        config = LlamaConfig(**sizes, max_position_embeddings=window)
        base = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).float().eval()
        return SharedLLMModel(base, model.tokenizer, name=f"small-{seed}", **options)

    return make


@pytest.fixture(scope="session")
def make_file() -> Callable[[Path, str], Path]:
    """``make_file(path, text)`` writes a file of the kind that its ending names, with this text, and returns it."""
    return _write


def _write(path: Path, text: str) -> Path:
    if path.suffix == ".pdf":
        path.write_bytes(_pdf(text))
    elif path.suffix == ".docx":
        with ZipFile(path, "w") as archive:
            for name, content in _docx(text).items():
                archive.writestr(name, content)
    elif path.suffix == ".pptx":
        from pptx import Presentation

        slides = Presentation()
        slides.slides.add_slide(slides.slide_layouts[5]).shapes.title.text = text
        slides.save(path)
    elif path.suffix == ".xlsx":
        from openpyxl import Workbook

        workbook = Workbook()
        workbook.active.append([text])
        workbook.save(path)
    else:
        path.write_text(f"<html><body><p>{text}</p></body></html>" if path.suffix == ".html" else text)
    return path


def _pdf(text: str) -> bytes:
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(content)}>>\nstream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    file, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(file))
        file += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(file)}\n%%EOF"
    return (file + end).encode("latin-1")


def _docx(text: str) -> dict[str, str]:
    schemas = "http://schemas.openxmlformats.org"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return {
        "[Content_Types].xml": f'<Types xmlns="{schemas}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{schemas}/package/2006/relationships"><Relationship Id="r" '
        f'Type="{schemas}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{schemas}/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>'
        f"{text}</w:t></w:r></w:p></w:body></w:document>",
    }
