"""The page at ``/`` in a real Chromium, which asks a real server; skipped where there is none."""

import shutil
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from shared_context.serve.access import Keys, add_key

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUESTION = "Who is the captain of the ferry?"
SECONDS = 30

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that fails its test where it asks another host, or breaks its own policy."""
    context = browser.new_context()
    context.set_default_timeout(SECONDS * 1000)
    page, complaints, hosts = context.new_page(), [], set()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield page
    context.close()
    assert hosts <= {"127.0.0.1", None}
    # A refusal, such as of a missing key, is in the browser's log, too, and meant to be there.
    assert [text for text in complaints if "the server responded with a status" not in text] == []


def asked(page, question=QUESTION):
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#took")).to_contain_text("entries injected", timeout=SECONDS * 1000)


def test_an_answer_streams_and_its_document_is_shown_with_what_was_seen(served, coast, page):
    page.goto(served.url)
    page.get_by_label("Store").select_option("coast")
    asked(page)
    selection = coast.select(QUESTION, budget=1024)
    assert page.locator("#answer").inner_text().strip()
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    for id in selection.doc_ids:
        article = page.get_by_role("article").filter(has=page.get_by_role("heading", name=id))
        text = article.locator("pre").evaluate("e => [...e.children].filter(c => c.className != 'out-of-sight')"
                                               ".map(c => c.textContent).join('')")  # fmt: skip
        assert text == coast.get(id).text
        seen = "".join(article.locator(".fine").all_text_contents())
        assert seen == "".join(node.text for node in selection.nodes if node.doc_id == id)


def test_what_is_seen_coarsely_is_told_apart(served, page):
    body = {"model": "coast", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1, "seen": True}
    seen = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "ratio": 4}).json()["seen"]
    assert {part["grain"] for document in seen for part in document["parts"]} == {"coarse"}
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=route.request.post_data.replace('"seen":true', '"seen":true,"ratio":4')))  # fmt: skip
    page.goto(served.url)
    asked(page)
    assert page.locator("pre .coarse").count() > 0 and page.locator("pre .fine").count() == 0


def test_a_citation_leads_to_its_place_by_mouse_and_by_keyboard(served, coast, page):
    page.goto(served.url)
    asked(page)
    citation = page.get_by_role("region", name="Passages").get_by_role("button").first
    expect(page.locator(".current")).to_have_count(0)
    citation.click()
    place = page.locator(".current")
    expect(place).to_be_focused()
    expect(place).to_be_in_viewport()
    assert " ".join(place.inner_text().split())[:20] in " ".join(citation.inner_text().split())
    last = page.get_by_role("region", name="Passages").get_by_role("button").last
    last.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".current")).to_be_focused()


def test_everything_is_reached_by_tab(served, page):
    page.goto(served.url)
    asked(page)
    reached = set()
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"store", "file", "question"} <= reached


def test_a_file_is_added_and_then_seen(make_coast, serving, page):
    with serving({"coast": make_coast()}) as running:
        page.goto(running.url)
        text = "The quarry is run by Ottoline Brandt. <script>document.title = 'broken'</script> \U0001f9ed east."
        file = {"name": "quarry <b>.txt", "mimeType": "text/plain", "buffer": text.encode()}
        page.get_by_label("Add a document").set_input_files(file)
        expect(page.get_by_role("status")).to_contain_text("is added to coast", timeout=SECONDS * 1000)
        asked(page, "Who runs the quarry?")
        article = page.get_by_role("article").filter(has=page.get_by_role("heading", name="quarry <b>.txt"))
        assert text in article.locator("pre").text_content()
        assert page.title() == "shared-context"
        page.get_by_label("Add a document").set_input_files({**file, "name": "x.zip", "buffer": b"PK\x03\x04broken"})
        expect(page.get_by_role("status")).to_contain_text("x.zip: ", timeout=SECONDS * 1000)


def test_a_file_is_dropped(make_coast, serving, page):
    with serving({"coast": make_coast()}) as running:
        page.goto(running.url)
        dropped = page.evaluate_handle("""() => {
            const data = new DataTransfer();
            data.items.add(new File(['The mill belongs to Ada.'], 'mill.txt'));
            return data;
        }""")
        page.dispatch_event("body", "drop", {"dataTransfer": dropped})
        expect(page.get_by_role("status")).to_contain_text("mill.txt is added", timeout=SECONDS * 1000)


def test_a_key_is_asked_for_and_kept_nowhere(coast, serving, tmp_path, page):
    key = add_key(tmp_path / "keys.json", "ann", stores=["coast"])
    with serving({"coast": coast}, keys=Keys(tmp_path / "keys.json")) as running:
        page.goto(running.url)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("sk-wrong")
        field.press("Tab")
        expect(page.get_by_role("status")).to_contain_text("not known here")
        field.fill(key)
        field.press("Tab")
        asked(page)
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert kept == '[{},{},""]'
        page.reload()
        expect(field).to_have_value("")
        # a key that may only ask is told so
        field.fill(key)
        field.press("Tab")
        expect(page.get_by_label("Store").locator("option")).to_have_count(1)
        page.get_by_label("Add a document").set_input_files({"name": "a.txt", "mimeType": "", "buffer": b"a"})
        expect(page.get_by_role("status")).to_contain_text("may ask and not change anything")


def test_a_long_answer_is_stopped_and_what_goes_wrong_is_said(served, page):
    page.goto(served.url)
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=route.request.post_data.replace('"seen":true', '"seen":true,"max_tokens":1500')))  # fmt: skip
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).not_to_be_empty(timeout=SECONDS * 1000)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Question").fill("why " * 4000)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("shorten it")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(served, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(served.url)
    asked(page)
    contrast = """element => {
        const rgba = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        let under = element;
        while (under && (rgba(getComputedStyle(under).backgroundColor)[3] ?? 1) === 0) under = under.parentElement;
        const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
        const back = under ? rgba(getComputedStyle(under).backgroundColor) : canvas;
        const [a, b] = [light(rgba(getComputedStyle(element).color)), light(back)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }"""
    for text in page.locator("h1, h2, h3, p, label, #answer, #citations button, .fine, .unseen, .coarse, button").all():
        if text.is_visible():
            assert text.evaluate(contrast) >= 4.5, text.evaluate("e => e.outerHTML")


def test_only_its_own_script_may_run(served):
    policy = httpx.get(served.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    for path in ("/page/../settings.py", "/page/%2e%2e/settings.py", "/page/", "/page/other.js"):
        assert httpx.get(served.url + path).status_code == 404
