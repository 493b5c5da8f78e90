"""A stand-in for wandb's server, for its own agent and runs: it hands out the runs of a sweep and keeps what they log."""

import gzip
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, SWEEP = "me", "vsae", "abc123"
SWEEP_PATH = f"{ENTITY}/{PROJECT}/{SWEEP}"


class WandbServer:
    """Within a `with`, a server on this machine, which has one sweep.

    Arguments:
        sweep: the content of the sweep's file.
        runs: the parameters of each run that agents are to start, by the run's ID.

    Attributes:
        configs, summaries, histories: what each run has sent, by its ID.
        exit_codes: of the runs that have ended.
        preempted: the runs that said that they are about to be.
        unknown: names of what it was asked and has no answer for.
    """

    def __init__(self, sweep: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]):
        self.sweep, self._waiting = sweep, list(runs.items())
        self.configs: dict[str, dict[str, Any]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.preempted: set[str] = set()
        self.unknown: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "WandbServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                is_json = self.path.endswith(("/graphql", "/file_stream"))
                self._answer(server.answer(self.path, json.loads(raw)) if is_json else {})

            def do_PUT(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer({})

            def do_GET(self):
                self._answer({})

            def _answer(self, content):
                raw = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes wandb use it."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self._http.server_port}",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": PROJECT,
            "WANDB_MODE": "online",
        }

    def answer(self, path: str, content: Any) -> Any:
        with self._lock:
            if found := re.fullmatch(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", path):
                self._stream(found[1], content)
                return {}
            query, variables = content.get("query", ""), content.get("variables") or {}
            name = re.search(r"(?:query|mutation)\s+(\w+)", query)
            answer = getattr(self, f"_{name[1]}", None) if name else None
            if answer is None:
                self.unknown.append(query[:300])
                return {"data": {}}
            return {"data": answer(variables)}

    def _stream(self, run: str, content: Any) -> None:
        """The lines of a run's files: wandb-history.jsonl and wandb-summary.json."""
        for file, lines in (content.get("files") or {}).items():
            parsed = (
                [json.loads(line) for line in lines["content"]] if file.startswith("wandb-") else []
            )
            if file == "wandb-history.jsonl":
                self.histories.setdefault(run, []).extend(parsed)
            elif file == "wandb-summary.json":
                self.summaries[run] = parsed[-1]
        if content.get("preempting"):
            self.preempted.add(run)
        if content.get("complete"):
            self.exit_codes[run] = content["exitcode"]

    # --- what GraphQL asks, by name

    def _Viewer(self, _: Any) -> Any:
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": user | {"teams": {"edges": []}}}

    def _SweepWithRuns(self, _: Any) -> Any:
        sweep = {"id": "1", "name": SWEEP, "config": json.dumps(self.sweep), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _CreateAgent(self, _: Any) -> Any:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, variables: Any) -> Any:
        """One run at a time. Without one left, the agent is told to exit."""
        commands: list[dict[str, Any]] = []
        if not json.loads(variables["runState"]):
            commands = [{"type": "exit"}]
            if self._waiting:
                run, parameters = self._waiting.pop(0)
                args = {name: {"value": value} for name, value in parameters.items()}
                commands = [
                    {"type": "run", "run_id": run, "program": self.sweep["program"], "args": args}
                ]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    def _RunResumeStatus(self, variables: Any) -> Any:
        """Each run here is new."""
        project = {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
        return {"model": project | {"bucket": None}}

    def _UpsertBucket(self, variables: Any) -> Any:
        run = variables["name"]
        config = json.loads(variables["config"] or "{}")
        self.configs[run] = {name: each["value"] for name, each in config.items()}
        project = {"name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
        bucket = {
            "id": run,
            "name": run,
            "displayName": run,
            "sweepName": SWEEP,
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}

    def _CreateRunFiles(self, variables: Any) -> Any:
        urls = [
            {"name": name, "uploadUrl": f"{self.environment['WANDB_BASE_URL']}/upload"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": urls}}

    def _ServerFeaturesQuery(self, _: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, _: Any) -> Any:
        return {"entity": {"organization": None}}
