"""As much of Kubernetes' API as a controller asks for: lists, watches, and the status of objects that stand in a file.

    python kubernetes_api.py PORT FILE

The file is a JSON list of objects; replace it to change them. A controller that knows all fields of an object may set
its status. On loopback, http, and for whoever asks.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


class Place(NamedTuple):
    """Where an object, or a list of them, is found."""

    group: str
    resource: str
    #: Empty: all, or the object has none.
    namespace: str
    #: Empty: a list.
    name: str

    @classmethod
    def of(cls, each: Object) -> Place:
        kind, metadata = each["kind"].lower(), each["metadata"]
        plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
        return cls(each["apiVersion"], plural, metadata.get("namespace", ""), metadata["name"])

    @classmethod
    def asked_for(cls, path: str) -> Place:
        """Of `/api/v1/…` and `/apis/GROUP/VERSION/…`; a subresource is left out."""
        _, kind, *parts = path.split("/")
        group = parts.pop(0) if kind == "api" else f"{parts.pop(0)}/{parts.pop(0)}"
        namespace = parts.pop(0) and parts.pop(0) if parts[0] == "namespaces" and len(parts) > 2 else ""
        return cls(group, parts[0], namespace, parts[1] if len(parts) > 1 else "")

    def has(self, other: Place) -> bool:
        """Whether the other is in this list, or is it."""
        return self[:2] == other[:2] and self.namespace in ("", other.namespace) and self.name in ("", other.name)


class Store:
    """The objects, each with the number of its last change."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.changed = threading.Condition()
        self.version = 0
        #: And whether they are still there.
        self.objects: dict[Place, tuple[int, Object, bool]] = {}
        self._sources: dict[Place, Object] = {}
        self._seen = ""
        self.load()

    def load(self) -> None:
        """Take what has changed in the file."""
        if (text := self._file.read_text()) == self._seen:
            return
        sources = {Place.of(each): each for each in json.loads(text)}
        with self.changed:
            for place in self._sources.keys() - sources.keys():
                self._put(place, self._sources[place], there=False)
            for place, each in sources.items():
                if self._sources.get(place) != each:
                    self._put(place, each)
            self._sources, self._seen = sources, text

    def set_status(self, place: Place, status: Object) -> Object:
        with self.changed:
            self._put(place, {**self.objects[place][1], "status": status})
            return self.objects[place][1]

    def _put(self, place: Place, each: Object, *, there: bool = True) -> None:
        self.version += 1
        more = {"resourceVersion": str(self.version), "uid": "-".join(place), "generation": 1}
        self.objects[place] = self.version, {**each, "metadata": {**each["metadata"], **more}}, there
        self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/version":
            self._answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
            return
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        place = Place.asked_for(url.path)
        if query.get("sendInitialEvents") == "true":
            # The client then lists first, as with every older server.
            self._answer(422, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid"})
        elif query.get("watch") in ("1", "true"):
            self._watch(place, int(query.get("resourceVersion") or 0))
        else:
            with self.store.changed:
                found = [each for other, (_, each, there) in self.store.objects.items() if there and place.has(other)]
                version = str(self.store.version)
            if place.name:
                self._answer(*((200, found[0]) if found else (404, {"kind": "Status", "apiVersion": "v1"})))
            else:
                self._answer(200, {"metadata": {"resourceVersion": version}, "items": found})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = Place.asked_for(self.path)
        if body["spec"] != self.store.objects[place][1]["spec"]:
            # A field that the controller's types do not have is not sent back.
            self._answer(422, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid"})
        else:
            self._answer(200, self.store.set_status(place, body["status"]))

    def _watch(self, place: Place, version: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            with self.store.changed:
                while self.store.version <= version:
                    self.store.changed.wait()
                news = [
                    {"type": "MODIFIED" if there else "DELETED", "object": each}
                    for other, (at, each, there) in self.store.objects.items()
                    if at > version and place.has(other)
                ]
                version = self.store.version
            for event in news:
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _answer(self, status: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    Handler.store = Store(Path(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        time.sleep(0.05)
        Handler.store.load()


if __name__ == "__main__":
    main()
