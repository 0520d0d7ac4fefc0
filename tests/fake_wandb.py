"""A small fake of W&B's server on loopback: takes runs, keeps what it was sent, and can go down."""

import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FakeWandb:
    """What a client sent: the operations, the runs' upserts, the rows of their histories and the artifacts."""

    def __init__(self) -> None:
        self.url = ""
        self.operations: list[str] = []
        self.runs: dict[str, dict] = {}
        self.rows: dict[str, dict[int, dict]] = {}
        self.artifacts: list[dict] = []
        self.refuses = False
        self.down = False

    def graphql(self, query: str, variables: dict) -> dict:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        self.operations.append(operation)
        name = variables.get("name") or variables.get("run") or variables.get("runName")
        bucket = {
            "id": f"id-{name}", "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None,
            "historyLineCount": len(self.rows.get(name, {})),
            "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "someone"}},
        }  # fmt: skip
        if operation == "UpsertBucket":
            inserted = name not in self.runs
            self.runs.setdefault(name, {}).update({k: v for k, v in variables.items() if v is not None})
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "RunResumeStatus":
            if name not in self.runs:
                return {"model": bucket["project"] | {"bucket": None}}
            lines = len(self.rows.get(name, {}))
            last = self.rows[name][lines - 1] if lines else {}
            return {"model": bucket["project"] | {"bucket": bucket | {
                "summaryMetrics": json.dumps(last), "logLineCount": 0, "historyTail": json.dumps([json.dumps(last)]),
                "eventsLineCount": 0, "eventsTail": "[]", "wandbConfig": '{"t": 1}', "tags": [],
            }}}  # fmt: skip
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "someone", "username": "someone", "flags": "{}"}}
        if operation == "ArtifactType":  # there is none of that type yet
            return {"project": {"artifact": None, "artifactType": None}}
        if operation == "CreateArtifact":  # as one that is there already: its files are not asked for
            self.artifacts.append(variables)
            number = {"id": f"artifact-{len(self.artifacts)}", "state": "COMMITTED"}
            return {"createArtifact": {"artifact": number | {"artifactSequence": {"latestArtifact": None}}}}
        if operation == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": f"id-{name}", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, run: str, body: dict) -> None:
        part = body.get("files", {}).get("wandb-history.jsonl")
        for i, line in enumerate(part["content"] if part else []):
            self.rows.setdefault(run, {})[part["offset"] + i] = json.loads(line)


@contextmanager
def serve():
    """A FakeWandb and the address that it listens on."""
    fake = FakeWandb()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if fake.down:  # hangs up
                self.close_connection = True
                return
            if fake.refuses:
                self.send_response(401)
                self.end_headers()
                self.wfile.write(b'{"data": null}')
                return
            if self.path == "/graphql":
                request = json.loads(body)
                answer = {"data": fake.graphql(request["query"], request.get("variables") or {})}
            else:
                if stream := re.search(r"/([^/]+)/file_stream", self.path):
                    fake.stream(stream[1], json.loads(body))
                answer = {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_PUT = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
