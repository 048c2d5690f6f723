"""As much of a W&B server as `wandb sync` needs to send runs to: it keeps each run's history."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def server() -> Iterator[tuple[str, dict[str, list[dict]], list[str]]]:
    """(its address, {run id: the rows of its history}, the paths of all requests)."""
    histories: dict[str, list[dict]] = {}
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"histories": histories, "requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.handle_error = lambda *connection: None  # W&B leaves without a word
        handler.address = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield handler.address, histories, requests
        finally:
            http.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    histories: dict[str, list[dict]]
    requests: list[str]
    address: str

    def do_POST(self) -> None:
        self.requests.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/graphql":
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            self._reply({"data": self._data(name.group(1), asked.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if history:
                rows = self.histories.setdefault(self.path.split("/")[-2], [])
                rows[history["offset"] :] = map(json.loads, history["content"])
        self._reply({})

    def do_PUT(self) -> None:  # an uploaded file
        self.requests.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply({})

    def _data(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": "me"}}
        run = {"id": asked.get("name"), "name": asked.get("name"), "project": project}
        rows = self.histories.get(asked.get("name") or "", [])
        if name == "RunResumeStatus":
            kept = {
                "historyTail": json.dumps([*map(json.dumps, rows[-1:])]),
                "historyLineCount": len(rows), "eventsLineCount": 0, "eventsTail": "[]",
                "logLineCount": 0, "tags": [], "config": "{}", "summaryMetrics": "{}",
                "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**project, "bucket": {**run, **kept} if rows else None}}
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": run, "inserted": not rows}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.address}/up"} for file in asked["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def _reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...
