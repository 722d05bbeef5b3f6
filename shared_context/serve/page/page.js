// Asks the server that this page came from. The API key stays in its field: it is kept nowhere and sent nowhere else.

const EDGE = 240; // characters that stay at each end of a long part that is not seen
const POLL = 500; // milliseconds between two looks at a file that is being read

const byId = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
let asking = null;
let listing = Promise.resolve();

function made(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function say(text, failed = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("failed", failed);
}

// ---- the server

async function call(path, options = {}) {
  const key = byId("key").value.trim();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { credentials: "omit", cache: "no-store", ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  if (response.status === 401) {
    byId("keyed").hidden = false;
    byId("key").focus();
  }
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server says ${response.status}.`);
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

async function* events(stream) {
  let held = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (held + text).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function listStores() {
  listing = askForStores().catch((error) => say(error.message, true));
}

async function askForStores() {
  const { data } = await (await call("v1/models")).json();
  byId("store").replaceChildren(...data.map((model) => made("option", { value: model.id, textContent: model.id })));
  say(data.length ? "" : "No store is served to you.");
}

const documentPath = (store, id) => `v1/vector_stores/${store}/files/${encodeURIComponent(id)}`;

// ---- a question

async function ask(question) {
  asking?.abort();
  const mine = (asking = new AbortController());
  await listing; // a key may just have been given
  const store = byId("store").value;
  const answer = byId("answer");
  for (const id of ["answer", "took", "citations", "documents"]) byId(id).replaceChildren();
  say("");
  // A screen reader says the whole answer when it is there, and not its pieces.
  answer.setAttribute("aria-busy", "true");
  byId("stop").disabled = false;
  let shown = Promise.resolve();
  try {
    const messages = [{ role: "user", content: question }];
    const body = { model: store, messages, stream: true, stream_options: { include_usage: true }, seen: true };
    const response = await post("v1/chat/completions", body, mine.signal);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.seen) shown = showDocuments(store, event.seen, mine.signal);
      if (event.usage) showUsage(event.usage);
      const delta = event.choices[0]?.delta;
      if (delta?.content) answer.append(delta.content);
      if (delta?.annotations) showCitations(delta.annotations);
    }
    await shown;
  } catch (error) {
    shown.catch(() => {});
    if (error.name !== "AbortError") say(error.message, true);
    else if (asking === mine) say("Stopped.");
  }
  if (asking === mine) {
    answer.setAttribute("aria-busy", "false");
    byId("stop").disabled = true;
  }
}

function showUsage({ prompt_tokens: prompt, completion_tokens: said, prompt_tokens_details: { injected_tokens: injected } }) {
  byId("took").textContent =
    `${injected.toLocaleString()} entries injected, ${(prompt - injected).toLocaleString()} tokens read, ` +
    `${said.toLocaleString()} written`;
}

function showCitations(annotations) {
  byId("citations").replaceChildren(
    ...annotations.map(({ file_citation: cited }) => {
      const words = cited.quote.length > EDGE ? `${cited.quote.slice(0, EDGE)}\u2026` : cited.quote;
      const button = made("button", { type: "button", dir: "auto" }, made("strong", {}, cited.filename), ` ${words}`);
      button.addEventListener("click", () => goTo(cited));
      return made("li", {}, button);
    }),
  );
}

function goTo({ file_id: id, start, end }) {
  const parts = [...document.querySelectorAll("[data-document]")].filter((part) => part.dataset.document === id);
  const place = parts.find((part) => Number(part.dataset.end) > start && Number(part.dataset.start) < end);
  if (!place) return say("The document of this passage is not shown.", true);
  document.querySelector(".current")?.classList.remove("current");
  place.classList.add("current");
  place.scrollIntoView({ block: "center" });
  place.focus({ preventScroll: true });
}

// ---- documents

async function showDocuments(store, seen, signal) {
  for (const document of seen) {
    const response = await call(`${documentPath(store, document.file_id)}/content`, { signal });
    const { data } = await response.json();
    signal.throwIfAborted();
    byId("documents").append(drawn(document, data.map((part) => part.text).join("")));
  }
}

function drawn({ file_id: id, filename, parts }, text) {
  const characters = Array.from(text); // the server counts characters, and a string's length UTF-16 units
  const words = (start, end) => characters.slice(start, end).join("");
  const body = made("pre", { dir: "auto" });
  let at = 0;
  for (const [number, { start, end, grain, ratio, score }] of parts.entries()) {
    if (start > at) body.append(...unseen(words(at, start), at > 0, true));
    const title = `${grain === "fine" ? "whole" : `one entry of ${ratio}`}, score ${score}`;
    const part = made("span", { className: grain, tabIndex: -1, title }, words(start, end));
    Object.assign(part.dataset, { document: id, start, end });
    const name = `Passage ${number + 1}, seen ${grain === "fine" ? "whole" : "coarsely"}: `;
    if (start > at || number === 0) body.append(made("span", { className: "out-of-sight" }, name));
    body.append(part);
    at = end;
  }
  if (at < characters.length) body.append(...unseen(words(at), at > 0, false));
  return made("article", {}, made("h3", {}, filename), body);
}

function unseen(text, before, after) {
  const plain = (words) => made("span", { className: "unseen" }, words);
  if (text.length <= 3 * EDGE) return [plain(text)];
  const head = before ? Math.max(text.lastIndexOf(" ", EDGE), 0) : 0;
  const tail = after ? text.indexOf(" ", text.length - EDGE) : text.length;
  const last = tail < 0 ? text.length - EDGE : tail;
  const hidden = text.slice(head, last);
  const label = `Show ${hidden.length.toLocaleString()} characters that were not seen`;
  const button = made("button", { type: "button", className: "gap" }, label);
  button.addEventListener("click", () => {
    const whole = plain(hidden);
    whole.tabIndex = -1;
    button.replaceWith(whole);
    whole.focus();
  });
  return [plain(text.slice(0, head)), button, plain(text.slice(last))];
}

async function add(files) {
  await listing;
  const store = byId("store").value;
  for (const file of files) {
    try {
      say(`${file.name} is being added.`);
      const form = new FormData();
      form.append("purpose", "assistants");
      form.append("file", file);
      const { id } = await (await call("v1/files", { method: "POST", body: form })).json();
      let state = await (await post(`v1/vector_stores/${store}/files`, { file_id: id })).json();
      while (state.status === "in_progress") {
        await pause(POLL);
        state = await (await call(documentPath(store, id))).json();
      }
      if (state.status !== "completed") throw new Error(state.last_error.message);
      say(`${file.name} is added to ${store}.`);
    } catch (error) {
      return say(error.message, true);
    }
  }
}

// ---- what is pressed and dropped

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(byId("question").value);
});
byId("stop").addEventListener("click", () => asking?.abort());
byId("key").addEventListener("change", listStores);
byId("file").addEventListener("change", async ({ target }) => {
  await add([...target.files]);
  target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}

listStores();
