// The chat: one conversation, streamed over /v1/chat/completions. What a model says enters the page
// as text, never as HTML.

// How close to its end, in pixels, the log is followed while it grows.
const FOLLOW_PIXELS = 80;

let messages = []; // without the system prompt
let running = null; // the AbortController of the answer under way
let unanswered = []; // tool calls whose results the next messages are

// ---- requests ----

function headers(hasBody) {
  const all = hasBody ? { "content-type": "application/json" } : {};
  const key = byId("key").value.trim();
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

/// Returns an error of an answer's body as a sentence.
function sentence(status, text) {
  try {
    const error = JSON.parse(text).error;
    if (typeof error === "string") return `${status}: ${error}`;
    const param = error.param ? ` (${error.param})` : "";
    return `${status}${error.code ? ` ${error.code}` : ""}: ${error.message}${param}`;
  } catch {
    return text ? `${status}: ${text.slice(0, 500)}` : String(status);
  }
}

async function failure(response) {
  return new Error(sentence(`HTTP ${response.status}`, await response.text().catch(() => "")));
}

/// Yields the data of each event of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? "\n\n" : value;
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/// Returns the request of the conversation as it stands; throws what is wrong with the settings.
function request() {
  const body = { model: byId("model").value };
  if (!body.model) throw new Error("no model is chosen");
  const system = byId("system").value.trim();
  body.messages = system ? [{ role: "system", content: system }, ...messages] : [...messages];
  for (const [id, name] of [["temperature", "temperature"], ["max-tokens", "max_tokens"], ["seed", "seed"]]) {
    const field = byId(id);
    const label = field.labels[0].textContent;
    if (!field.checkValidity()) throw new Error(`${label}: ${field.validationMessage}`);
    if (field.value !== "") body[name] = Number(field.value);
  }
  const more = byId("more").value.trim();
  if (more) {
    let fields;
    try {
      fields = JSON.parse(more);
    } catch (error) {
      throw new Error(`More fields: ${error.message}`);
    }
    if (fields === null || typeof fields !== "object" || Array.isArray(fields)) {
      throw new Error("More fields: expected a JSON object");
    }
    Object.assign(body, fields);
  }
  body.stream = true;
  body.stream_options = { include_usage: true };
  return body;
}

// ---- one answer ----

/// What has come of an answer so far.
class Answer {
  constructor(model) {
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.usage = null;
    this.finish = null;
    this.deltas = 0;
    this.started = performance.now();
    this.first = this.last = null;
    this.view = new View(model);
  }

  take(frame) {
    if (frame.error) throw new Error(sentence("error", JSON.stringify(frame)));
    if (frame.usage) this.usage = frame.usage;
    const choice = (frame.choices ?? [])[0];
    if (!choice) return;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    const delta = choice.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    const content = delta.content ?? delta.refusal ?? "";
    const calls = delta.tool_calls ?? [];
    if (!reasoning && !content && !calls.length) return;
    this.deltas += 1;
    this.last = performance.now();
    this.first ??= this.last;
    this.reasoning += reasoning;
    this.text += content;
    for (const part of calls) this.call(part);
    this.view.grow(reasoning, content, this.calls);
  }

  call(part) {
    const index = Number.isInteger(part.index) ? part.index : this.calls.length;
    const call = (this.calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    if (part.function?.name) call.function.name ||= part.function.name;
    if (part.function?.arguments) call.function.arguments += part.function.arguments;
  }

  /// Returns the figures as a line: the rate is of the tokens after the first.
  figures(how) {
    const parts = [];
    const tokens = this.usage?.completion_tokens;
    const count = tokens ?? this.deltas;
    const about = tokens === undefined ? "about " : "";
    if (this.first !== null) {
      parts.push(`time to first token ${Math.round(this.first - this.started)} ms`);
      const seconds = (this.last - this.first) / 1000;
      if (count > 1 && seconds > 0) parts.push(`${about}${((count - 1) / seconds).toFixed(1)} tokens/s`);
    }
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      parts.push(`${this.usage.prompt_tokens} prompt${cached ? ` (${cached} cached)` : ""} + ${count} answer tokens`);
    } else if (count) parts.push(`${about}${count} answer tokens`);
    parts.push(how ?? `finish: ${this.finish ?? "none"}`);
    return parts.join(" · ");
  }

  message() {
    const message = { role: "assistant", content: this.text || null };
    const calls = this.calls.filter(Boolean);
    if (calls.length) message.tool_calls = calls;
    return message;
  }
}

/// The part of the page that shows an answer.
class View {
  constructor(model) {
    this.reasoning = document.createTextNode("");
    this.folded = make("details", { className: "reasoning", hidden: true },
      make("summary", {}, "Reasoning"), make("pre", {}, this.reasoning));
    this.text = document.createTextNode("");
    this.calls = make("div", { className: "calls" });
    this.article = make("article", { className: "assistant", "aria-busy": "true" },
      make("h3", {}, model), this.folded, make("div", { className: "text" }, this.text), this.calls);
    append(this.article);
  }

  grow(reasoning, content, calls) {
    following(() => {
      if (reasoning) {
        this.folded.hidden = false;
        this.reasoning.appendData(reasoning);
      }
      if (content) this.text.appendData(content);
      calls.forEach((call, index) => {
        let shown = this.calls.children[index];
        while (!shown) {
          this.calls.append(make("details", { className: "call", open: true }, make("summary"), make("pre")));
          shown = this.calls.children[index];
        }
        shown.children[0].textContent = `Tool call: ${call.function.name} ${call.id}`;
        shown.children[1].textContent = call.function.arguments;
      });
    });
  }

  end(line, body, error) {
    following(() => {
      this.article.setAttribute("aria-busy", "false");
      if (error) this.article.append(make("p", { className: "error", role: "alert" }, error));
      this.article.append(make("p", { className: "stats" }, line), sameRequest(body));
    });
    byId("status").textContent = error ? `The answer failed: ${error}` : `Answer complete: ${this.text.data}`;
  }
}

async function ask() {
  const body = request();
  const controller = (running = new AbortController());
  busy(true);
  const answer = new Answer(body.model);
  let error = null;
  let how = null;
  try {
    const response = await fetch(place(facts.paths.chat), {
      method: "POST", headers: headers(true), body: JSON.stringify(body), signal: controller.signal,
    });
    if (!response.ok) throw await failure(response);
    if (!(response.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
      throw new Error("the server did not answer with a stream");
    }
    let isWhole = false;
    for await (const data of events(response.body)) {
      // Read on to the end: a reader that leaves here would count as a cancelled request.
      if (data === "[DONE]") isWhole = true;
      else answer.take(JSON.parse(data));
    }
    if (!isWhole) throw new Error("the stream broke off before its end");
  } catch (cause) {
    if (controller.signal.aborted) how = "stopped";
    else error = cause instanceof TypeError ? `cannot reach the server: ${cause.message}` : cause.message;
  }
  answer.view.end(answer.figures(error ? "failed" : how), body, error);
  running = null;
  busy(false);
  return { answer, isGood: !error && !how };
}

// ---- the same request, for other clients ----

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const hasKey = () => byId("key").value.trim() !== "";

function curl(body) {
  const key = hasKey() ? `  -H "authorization: Bearer $STATOR_API_KEY" \\\n` : "";
  return `curl -N ${shell(place(facts.paths.chat))} \\\n  -H 'content-type: application/json' \\\n${key}` +
    `  -d ${shell(JSON.stringify(body, null, 2))}`;
}

/// Returns a JSON value as Python writes it; a text's JSON is Python as it is.
function pythonValue(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = indent + "    ";
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => pythonValue(item, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${pythonValue(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length + indent.length <= 90 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

// What the SDK has arguments for; other fields go into its extra_body.
const SDK_FIELDS = new Set(("model messages temperature max_tokens max_completion_tokens seed top_p n stop stream " +
  "stream_options tools tool_choice parallel_tool_calls response_format logprobs top_logprobs logit_bias " +
  "presence_penalty frequency_penalty reasoning_effort metadata store user service_tier prediction modalities " +
  "verbosity safety_identifier prompt_cache_key").split(" "));

function python(body) {
  const key = hasKey() ? `os.environ["STATOR_API_KEY"]` : `"none"`;
  const known = Object.entries(body).filter(([name]) => SDK_FIELDS.has(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => !SDK_FIELDS.has(name)));
  if (Object.keys(others).length) known.push(["extra_body", others]);
  // The SDK asks for this path below its base, wherever the route is.
  const base = place(facts.paths.chat).replace(/\/chat\/completions$/, "");
  const fields = known.map(([name, value]) => `    ${name}=${pythonValue(value, "    ")},\n`).join("");
  return `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})\n` +
    `stream = client.chat.completions.create(\n${fields})\n` +
    `for chunk in stream:\n    if chunk.choices:\n` +
    `        print(chunk.choices[0].delta.content or "", end="", flush=True)\nprint()`;
}

// Fields of the chat that are no settings of a KServe request, or others there.
const NO_SETTINGS = new Set(["model", "messages", "stream", "stream_options"]);
const OTHERS = new Set(["logprobs", "top_logprobs", "metadata", "user", "store"]);

function grpcurl(body) {
  const left = [];
  const parameters = {};
  for (const [name, value] of Object.entries(body)) {
    if (NO_SETTINGS.has(name) || value === null) continue;
    if (OTHERS.has(name) || (Array.isArray(value) && name !== "tools")) left.push(name);
    else if (typeof value === "boolean") parameters[name] = { bool_param: value };
    else if (typeof value === "string") parameters[name] = { string_param: value };
    else if (typeof value === "object") parameters[name] = { string_param: JSON.stringify(value) };
    else if (Number.isInteger(value) && name !== "temperature") parameters[name] = { int64_param: value };
    else parameters[name] = { double_param: value };
  }
  const plain = location.protocol === "https:" ? "" : "-plaintext ";
  const key = hasKey() ? `-H "authorization: Bearer $STATOR_API_KEY" ` : "";
  const note = left.length ? `# without ${left.join(", ")}: only the OpenAI routes take these\n` : "";
  const contents = `"'"$(printf %s ${shell(JSON.stringify(body.messages))} | base64 | tr -d '\\n')"'"`;
  const model = shell(JSON.stringify(body.model)).slice(1, -1);
  const shown = shell(JSON.stringify(parameters)).slice(1, -1);
  return `${note}grpcurl ${plain}${key}-d '{"model_name": ${model},\n` +
    `  "inputs": [{"name": "messages", "datatype": "BYTES", "shape": [1],\n` +
    `              "contents": {"bytes_contents": [${contents}]}}],\n` +
    `  "outputs": [{"name": "text_output"}],\n  "parameters": ${shown}}' \\\n` +
    `  ${location.hostname}:${facts.grpc_port} inference.GRPCInferenceService/ModelInfer \\\n` +
    `  | python3 -c 'import base64, json, sys; ` +
    `print(base64.b64decode(json.load(sys.stdin)["rawOutputContents"][0])[4:].decode())'`;
}

let ids = 0;

/// Returns the folded snippets of a request, as tabs.
function sameRequest(body) {
  const kinds = [["curl", curl], ["Python", python], ["grpcurl", grpcurl]];
  const id = `same-${(ids += 1)}`;
  const code = make("pre", { id, role: "tabpanel", tabIndex: 0 });
  const copy = make("button", { type: "button", className: "small copy" }, "Copy");
  copy.addEventListener("click", () => copyText(code, copy));
  const list = make("div", { role: "tablist", "aria-label": "The same request" });
  const tabs = kinds.map(([name, snippet]) => {
    const tab = make("button", { type: "button", className: "small", role: "tab", "aria-controls": id }, name);
    tab.addEventListener("click", () => choose(tab, snippet));
    list.append(tab);
    return tab;
  });
  function choose(chosen, snippet) {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    code.setAttribute("aria-label", chosen.textContent);
    code.textContent = snippet(body);
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = tabs.indexOf(document.activeElement);
    if (!step || at < 0) return;
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
  list.append(copy);
  choose(tabs[0], curl);
  return make("details", { className: "same" }, make("summary", {}, "The same request as curl, Python, grpcurl"), list, code);
}

/// Copies a text; without the clipboard, which needs https or localhost, selects it instead.
async function copyText(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// ---- the page ----

/// Runs a change of the log and stays at its end, if that is where the reader is.
function following(change) {
  const view = document.querySelector("main");
  const isAtEnd = view.scrollHeight - view.scrollTop - view.clientHeight < FOLLOW_PIXELS;
  change();
  if (isAtEnd) view.scrollTop = view.scrollHeight;
}

function append(article) {
  byId("log").append(article);
  article.scrollIntoView({ block: "end" });
}

function busy(isBusy) {
  byId("send").disabled = isBusy;
  byId("stop").disabled = !isBusy;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
  if (text) byId("notice").scrollIntoView({ block: "end" });
}

/// Says in the field what the next message is: a prompt, or the result of a tool call.
function hint() {
  const call = unanswered[0];
  byId("prompt").placeholder = call
    ? `Result of ${call.function.name} (${call.id}), as the tool would give it`
    : "Message: Enter sends, Shift+Enter starts a line";
}

async function send() {
  const field = byId("prompt");
  const text = field.value;
  if (running || !text.trim()) return;
  notice("");
  const before = messages.length;
  const calls = [...unanswered];
  const call = unanswered.shift();
  messages.push(call ? { role: "tool", tool_call_id: call.id, content: text } : { role: "user", content: text });
  try {
    request();
  } catch (error) {
    messages.length = before;
    unanswered = calls;
    return notice(error.message);
  }
  const who = call ? `Result of ${call.function.name}` : "You";
  append(make("article", { className: "user" }, make("h3", {}, who), make("div", { className: "text" }, text)));
  field.value = "";
  hint();
  if (unanswered.length) return;
  const asked = messages;
  const { answer, isGood } = await ask();
  if (asked !== messages) return; // a new chat was begun meanwhile
  const message = answer.message();
  if (isGood || message.content) {
    // An answer that was cut may hold half a call, which nobody can answer.
    if (!isGood) delete message.tool_calls;
    messages.push(message);
    unanswered = message.tool_calls ? [...message.tool_calls] : [];
  } else {
    // Nothing came: the message is no part of the conversation and can be sent again.
    messages.length = before;
    unanswered = calls;
    if (!field.value) field.value = text;
  }
  hint();
  field.focus();
}

function freshChat() {
  running?.abort();
  messages = [];
  unanswered = [];
  byId("log").replaceChildren();
  notice("");
  hint();
  byId("prompt").focus();
}

async function listModels() {
  const select = byId("model");
  const wanted = select.value || new URLSearchParams(location.search).get("model");
  try {
    const response = await fetch(place(facts.paths.models), { headers: headers(false) });
    if (!response.ok) throw await failure(response);
    const names = (await response.json()).data.map((model) => model.id);
    if (wanted && !names.includes(wanted)) names.unshift(wanted);
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (wanted) select.value = wanted;
    notice(names.length ? "" : "The server has no model for this.");
  } catch (error) {
    notice(`Cannot list the models: ${error.message}`);
  }
}

byId("docs").href = place(facts.paths.docs);
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("fresh").addEventListener("click", freshChat);
byId("key").value = sessionStorage.getItem(KEY) ?? "";
byId("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY, byId("key").value.trim());
  listModels();
});
listModels();
