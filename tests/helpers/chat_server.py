"""A small OpenAI-compatible server in the test process, and runs whose features it explains."""

import json
import re
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kept import kept
from report_runs import QUICK, train

from dictionary_learning_ext.cli import main

FEATURES = 3
MODELS = ["--explainer", "explainer", "--scorer", "scorer"]


class ChatServer(ThreadingHTTPServer):
    """Answers as `answer(request)` says: the text of a chat completion; a status, or a status with a body and headers;
    a function that writes the whole response; None to close the connection without an answer. Notes the requests and
    their headers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = knowing
        self.requests = []
        self.headers = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that stop are no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        chat = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.requests.append(request)
            chat.headers.append(self.headers)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
        try:
            found = chat.answer(request)
        finally:
            with chat.lock:
                chat.at_once -= 1
        if found is None:
            self.close_connection = True
            return
        if callable(found):
            found(self.wfile.write)
            self.close_connection = True
            return
        if isinstance(found, str):
            found = (200, completion(found), {})
        status, body, headers = (found, "", {}) if isinstance(found, int) else found
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body.encode()))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format, *args):
        pass


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def asked(request):
    """The last message."""
    return request["messages"][-1]["content"]


def is_greeting(request):
    return "one word" in asked(request)


def is_of_scorer(request):
    return asked(request).startswith("Explanation:")


def excerpts(request):
    return re.findall(r"^\d+\. (.*)$", asked(request), re.MULTILINE)


def knowing(request):
    """Explains by the text that is marked most often, and looks for it."""
    if is_greeting(request):
        return "yes"
    if not is_of_scorer(request):
        marked = re.findall(r"<<(.*?)>>", asked(request))
        return f"I see.\nExplanation: the text '{max(set(marked), key=marked.count)}'"
    wanted = re.search(r"the text '(.*)'", asked(request))[1]
    return str([int(wanted in text) for text in excerpts(request)])


@contextmanager
def serving():
    server = ChatServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def chat():
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def to_explain(tiny_lm_dir, text, tmp_path_factory):
    """A small run whose features fire rarely. Tests leave its folder as it is."""
    flags = ["--dict-size", "128", "--k", "2", "--beta", "0.03"]
    made = kept("to_explain", lambda folder: train(tiny_lm_dir, text, folder / "vsae", *flags))
    return shutil.copytree(made / "vsae", tmp_path_factory.mktemp("to_explain") / "vsae")


HOSTILE = "=1+1</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="session")
def explained(to_explain, tmp_path_factory):
    """Two run folders: explanations that are made to break a page, and better ones of other features, too."""
    base = tmp_path_factory.mktemp("explained")
    folders = [shutil.copytree(to_explain, base / name) for name in ("hostile", "good")]
    with serving() as chat:
        assert main(words(folders[1], chat, "--features", FEATURES + 2)) == 0

        def answer(request):
            if is_greeting(request) or is_of_scorer(request):
                return (
                    "yes"
                    if is_greeting(request)
                    else str([0, 1] * 20)[: 3 * len(excerpts(request)) - 1] + "]"
                )
            return f"Explanation: {HOSTILE} Unmistakable\u202e"

        chat.answer = answer
        assert main(words(folders[0], chat)) == 0
    return folders


@pytest.fixture(scope="session")
def explained_report(explained, tmp_path_factory):
    out = tmp_path_factory.mktemp("explained_report") / "page.html"
    hostile, good = map(str, explained)
    assert main(["report", hostile, "--against", good, "--out", str(out), *QUICK]) == 0
    return out


@pytest.fixture
def folder_to_explain(to_explain, tmp_path):
    return shutil.copytree(to_explain, tmp_path / "vsae")


def words(folder, chat, *flags):
    """The arguments of `vsae explain`."""
    few = ["--features", str(FEATURES), "--tokens", "3000"]
    return ["explain", str(folder), "--endpoint", chat.url, *MODELS, *few, *map(str, flags)]


def stored(folder):
    return json.loads((folder / "explanations.json").read_text(encoding="utf-8"))
