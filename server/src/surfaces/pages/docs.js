// The reference: /openapi.json as a page, each route with its fields and a form to try it.

const METHODS = ["get", "post", "put", "delete", "patch"];
// A schema that holds itself is shown to this depth.
const MAX_DEPTH = 6;

let api = null;
let firstModel = "MODEL";

/// Follows a reference into the document.
function resolve(item) {
  let seen = 0;
  while (item && item.$ref && (seen += 1) < 20) {
    item = item.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], api);
  }
  return item ?? {};
}

/// Returns texts with `code` in them as nodes.
function prose(text) {
  return (text ?? "").split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

// ---- schemas ----

/// Returns a schema's type in a few words.
function typeOf(schema, depth = 0) {
  const name = schema.$ref?.split("/").pop();
  schema = resolve(schema);
  const options = schema.anyOf ?? schema.oneOf;
  if (options && depth < 3) return options.map((option) => typeOf(option, depth + 1)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {}, depth + 1)}`;
  if (schema.type === "object" || schema.properties || schema.allOf) return name ?? "object";
  const type = [schema.type ?? "any"].flat().join(" or ");
  return schema.format ? `${type} (${schema.format})` : type;
}

/// Returns what a value is bound to.
function bounds(schema) {
  schema = resolve(schema);
  const parts = [];
  if (schema.minimum !== undefined) parts.push(`from ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) parts.push(`above ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) parts.push(`to ${schema.maximum}`);
  if (schema.maxItems !== undefined) parts.push(`at most ${schema.maxItems}`);
  if (schema.maxLength !== undefined) parts.push(`up to ${schema.maxLength} characters`);
  if (schema.default !== undefined) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

/// Returns the objects that a schema holds: itself, its items, its alternatives.
function objects(schema, depth) {
  const name = schema.$ref?.split("/").pop();
  schema = resolve(schema);
  if (depth > MAX_DEPTH) return [];
  if (schema.properties || schema.allOf) return [{ name, schema }];
  if (schema.items) return objects(schema.items, depth + 1);
  return (schema.anyOf ?? schema.oneOf ?? []).flatMap((option) => objects(option, depth + 1));
}

function flatten(schema) {
  const required = new Set(schema.required ?? []);
  const properties = { ...schema.properties };
  for (const part of schema.allOf ?? []) {
    const inner = flatten(resolve(part));
    Object.assign(properties, inner.properties);
    inner.required.forEach((name) => required.add(name));
  }
  return { properties, required };
}

/// Returns the table of an object's fields; objects within unfold.
function fields(schema, depth = 0) {
  const { properties, required } = flatten(resolve(schema));
  const isRequired = ([name]) => Number(required.has(name));
  const entries = Object.entries(properties).sort((one, other) => isRequired(other) - isRequired(one));
  const rows = entries.map(([name, field]) => {
    const about = make("td", {}, ...prose(field.description ?? resolve(field).description));
    const limits = bounds(field);
    if (limits) about.append(make("div", { className: "faint" }, limits));
    for (const inner of objects(field, depth + 1)) {
      const folded = make("details", {}, make("summary", { className: "faint" }, `fields of ${inner.name ?? name}`));
      // Made when it is opened, because schemas may hold themselves.
      folded.addEventListener("toggle", () => {
        if (folded.open && folded.children.length === 1) folded.append(fields(inner.schema, depth + 1));
      });
      about.append(folded);
    }
    const mark = required.has(name) ? make("strong", { title: "required" }, " *") : "";
    return make("tr", {}, make("td", {}, make("code", {}, name), mark), make("td", { className: "faint" }, typeOf(field)), about);
  });
  const head = make("tr", {}, ...["Field", "Type", ""].map((text) => make("th", { scope: "col" }, text)));
  return make("div", { className: "fields" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function shape(schema) {
  const shown = objects(schema, 0);
  if (!shown.length) return [make("p", { className: "faint" }, typeOf(schema))];
  return shown.flatMap((inner) => {
    const title = shown.length > 1 && inner.name ? [make("p", { className: "faint" }, inner.name)] : [];
    return [...title, fields(inner.schema)];
  });
}

// ---- trying a route ----

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/// Returns the address, headers and body that a form stands for.
function filled(operation, inputs, body) {
  let path = operation.path;
  const query = new URLSearchParams();
  for (const { parameter, input } of inputs) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, input.value.split("/").map(encodeURIComponent).join("/"));
    if (parameter.in === "query" && input.value !== "") query.append(parameter.name, input.value);
  }
  const key = byId("key").value.trim();
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  const text = query.toString();
  return { url: place(path) + (text && `?${text}`), headers, body: body?.value, key };
}

function curl(operation, request) {
  const parts = [`curl ${/stream/.test(request.body ?? "") ? "-N " : ""}${operation.method === "get" ? "" : `-X ${operation.method.toUpperCase()} `}${shell(request.url)}`];
  if (request.key) parts.push(`-H "authorization: Bearer $STATOR_API_KEY"`);
  if (request.body !== undefined) parts.push("-H 'content-type: application/json'", `-d ${shell(request.body)}`);
  return parts.join(" \\\n  ");
}

/// Sends a request and shows what comes, as it comes.
async function send(operation, request, out, signal) {
  const started = performance.now();
  try {
    const { url, headers, body } = request;
    const response = await fetch(url, { method: operation.method.toUpperCase(), headers, body, signal });
    const kind = response.headers.get("content-type") ?? "";
    out.textContent = `${response.status} ${response.statusText} ${kind}\n\n`;
    if (kind.startsWith("application/json")) {
      const text = await response.text();
      try {
        out.append(JSON.stringify(JSON.parse(text), null, 2));
      } catch {
        out.append(text);
      }
    } else if (response.body) {
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) out.append(part.value);
    }
    out.append(`\n\n${Math.round(performance.now() - started)} ms`);
  } catch (error) {
    out.append(signal.aborted ? "\n\nstopped" : `\n\ncannot reach the server: ${error.message}`);
  }
}

function example(content) {
  const given = content.example ?? resolve(content.schema).example;
  return given === undefined ? "{}" : JSON.stringify(given, null, 2).replaceAll('"MODEL"', JSON.stringify(firstModel));
}

/// Returns the form of a route.
function tryIt(operation, parameters, content) {
  const inputs = parameters.filter((parameter) => parameter.in !== "header").map((parameter) => {
    const id = `${operation.operationId}-${parameter.name}`;
    const value = parameter.name === "model" ? firstModel : String(parameter.example ?? "");
    const input = make("input", { id, value, required: Boolean(parameter.required) });
    return { parameter, input, row: make("div", {}, make("label", { htmlFor: id }, `${parameter.name} (${parameter.in})`), input) };
  });
  const id = `${operation.operationId}-body`;
  const body = content && make("textarea", { id, value: example(content), spellcheck: false, rows: 8 });
  const command = make("pre", { "aria-label": "curl" });
  const out = make("pre", { hidden: true, "aria-label": "Answer", tabIndex: 0 });
  const go = make("button", { type: "submit", className: "main" }, "Send");
  const stop = make("button", { type: "button", disabled: true }, "Stop");
  const copy = make("button", { type: "button" }, "Copy curl");
  const form = make("form", { className: "try" }, make("div", { className: "grid" }, ...inputs.map((input) => input.row)));
  if (body) form.append(make("label", { htmlFor: id }, "Body"), body);
  form.append(make("div", { className: "row" }, go, stop, copy), command, out);
  const refresh = () => (command.textContent = curl(operation, filled(operation, inputs, body)));
  form.addEventListener("input", refresh);
  byId("key").addEventListener("input", refresh);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch {
      getSelection().selectAllChildren(command);
    }
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const controller = new AbortController();
    stop.onclick = () => controller.abort();
    [go.disabled, stop.disabled, out.hidden] = [true, false, false];
    out.textContent = "";
    await send(operation, filled(operation, inputs, body), out, controller.signal);
    [go.disabled, stop.disabled] = [false, true];
  });
  refresh();
  return form;
}

// ---- the page ----

/// Returns all that is to say about a route.
function details(operation) {
  const parameters = [...(operation.shared ?? []), ...(operation.parameters ?? [])].map(resolve);
  const body = make("div", {}, make("p", {}, ...prose(operation.description)));
  if (parameters.length) {
    const properties = Object.fromEntries(parameters.map((parameter) => [
      parameter.name, { ...resolve(parameter.schema), description: `${parameter.in}: ${parameter.description ?? ""}` }]));
    const required = parameters.filter((parameter) => parameter.required).map((parameter) => parameter.name);
    body.append(make("h4", {}, "Parameters"), fields({ properties, required }));
  }
  const content = resolve(operation.requestBody).content?.["application/json"];
  if (content) body.append(make("h4", {}, "Request"), ...shape(content.schema ?? {}));
  for (const [status, given] of Object.entries(operation.responses ?? {})) {
    const response = resolve(given);
    body.append(make("h4", {}, `Answer ${status}`), make("p", { className: "faint" }, ...prose(response.description)));
    if (status.startsWith("2")) {
      for (const [kind, media] of Object.entries(response.content ?? {})) {
        body.append(make("p", { className: "faint" }, kind), ...(media.schema ? shape(media.schema) : []));
      }
    }
  }
  body.append(make("h4", {}, "Try it"), tryIt(operation, parameters, content));
  return body;
}

function row(operation) {
  const shown = make("details", { className: "operation", id: operation.operationId },
    make("summary", {}, make("span", { className: `method ${operation.method}` }, operation.method.toUpperCase()),
      make("code", {}, operation.path), make("span", { className: "faint" }, operation.summary ?? "")));
  shown.dataset.words = `${operation.method} ${operation.path} ${operation.summary} ${operation.description}`.toLowerCase();
  shown.addEventListener("toggle", () => {
    if (shown.open && shown.children.length === 1) shown.append(details(operation));
  });
  return shown;
}

function render() {
  byId("about").append(...prose(`Version ${api.info.version}. ${api.info.description ?? ""}`));
  const operations = Object.entries(api.paths).flatMap(([path, item]) => METHODS.filter((method) => item[method])
    .map((method) => ({ ...item[method], path, method, shared: item.parameters })));
  for (const tag of api.tags) {
    const rows = operations.filter((operation) => operation.tags?.includes(tag.name)).map(row);
    byId("operations").append(make("section", {}, make("h2", {}, tag.name),
      make("p", { className: "faint" }, ...prose(tag.description)), ...rows));
  }
  const linked = location.hash && byId(location.hash.slice(1));
  if (linked) {
    linked.open = true;
    linked.scrollIntoView();
  }
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  for (const section of document.querySelectorAll("section")) {
    const rows = [...section.querySelectorAll(".operation")];
    rows.forEach((shown) => (shown.hidden = !words.every((word) => shown.dataset.words.includes(word))));
    section.hidden = rows.every((shown) => shown.hidden);
  }
}

async function start() {
  byId("page").href = place(facts.paths.page);
  byId("openapi").href = place(facts.paths.openapi);
  byId("key").value = sessionStorage.getItem(KEY) ?? "";
  byId("key").addEventListener("change", () => sessionStorage.setItem(KEY, byId("key").value.trim()));
  byId("filter").addEventListener("input", filter);
  const key = byId("key").value;
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  try {
    api = await (await fetch(place(facts.paths.openapi), { headers })).json();
    const models = await fetch(place(facts.paths.models), { headers });
    if (models.ok) firstModel = (await models.json()).data[0]?.id ?? firstModel;
    render();
  } catch (error) {
    byId("notice").textContent = `Cannot show the reference: ${error.message}`;
    byId("notice").hidden = false;
  }
}

start();
