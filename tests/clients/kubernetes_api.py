"""A server with what discovery needs of the Kubernetes API: lists, watches, writes."""

import contextlib
import http.server
import json
import re
import threading
import urllib.parse


class Store:
    """Objects by kind and name, and everything that happened to them."""

    def __init__(self):
        self.news = threading.Condition()
        self.objects, self.history, self.is_down = {}, [], False

    def write(self, kind, item):
        name = item["metadata"]["name"]
        what = "MODIFIED" if (kind, name) in self.objects else "ADDED"
        self.note(what, kind, item)
        item["metadata"].setdefault("uid", f"uid-{len(self.history)}")
        self.objects[kind, name] = item
        return item

    def delete(self, kind, name):
        item = self.objects.pop((kind, name))
        self.note("DELETED", kind, item)
        return item

    def note(self, what, kind, item):
        item["metadata"]["resourceVersion"] = str(len(self.history) + 1)
        self.history.append((what, kind, item))
        self.news.notify_all()

    def set_down(self, is_down):
        with self.news:
            self.is_down = is_down
            self.news.notify_all()


def selects(selector, item):
    """Returns whether a selector takes an object: `a=b,c in (d,e)`."""
    labels = item["metadata"].get("labels", {})
    sets = {name: values.split(",") for name, values in re.findall(r"([^, ]+) in \(([^)]*)\)", selector)}
    equal = re.findall(r"([^, ]+)=([^, ]*)", selector)
    return (all(labels.get(name) == value for name, value in equal)
            and all(labels.get(name) in values for name, values in sets.items()))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        store, url = self.server.store, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        tail = url.path.split("/namespaces/fleet/")[1].split("/")
        kind, name = tail[0], tail[1] if len(tail) > 1 else None
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if self.command == "GET" and "watch" in query:
            return self.watch(kind, query)
        with store.news:
            if store.is_down:
                return self.reply(503, {"message": "down"})
            return self.reply(*self.answer(store, kind, name or body.get("metadata", {}).get("name"), query, body))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def answer(self, store, kind, name, query, body):
        known = store.objects.get((kind, name))
        if self.command == "GET" and name:
            return (200, known) if known else (404, {"message": "not found"})
        if self.command == "GET":
            items = [item for (of, _), item in store.objects.items()
                     if of == kind and selects(query["labelSelector"], item)]
            return 200, {"metadata": {"resourceVersion": str(len(store.history))}, "items": items}
        if self.command == "POST":
            return (409, {"message": "exists"}) if known else (201, store.write(kind, body))
        if known is None:
            return 404, {"message": "not found"}
        if self.command == "PATCH":
            body = {**known, "metadata": dict(known["metadata"]), "spec": {**known["spec"], **body["spec"]}}
        return 200, store.delete(kind, name) if self.command == "DELETE" else store.write(kind, body)

    def watch(self, kind, query):
        store, at = self.server.store, int(query["resourceVersion"])
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                with store.news:
                    store.news.wait_for(lambda: store.is_down or len(store.history) > at, 1)
                    if store.is_down:
                        return
                    new, at = store.history[at:], len(store.history)
                lines = [{"type": what, "object": item} for what, of, item in new
                         if of == kind and selects(query["labelSelector"], item)]
                lines.append({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(at)}}})
                self.wfile.write("".join(json.dumps(line) + "\n" for line in lines).encode())


@contextlib.contextmanager
def api_server():
    """Runs one; yields its store and the URL of its namespace `fleet`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.store = True, Store()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.store, f"kubernetes+http://127.0.0.1:{server.server_address[1]}/fleet"
    finally:
        server.shutdown()
        server.server_close()
