"""A language model behind an OpenAI-compatible endpoint: a hosted one, or a local server such as vLLM's, llama.cpp's
or Ollama's."""

import json
import re
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from ..config.checks import require
from ..errors import ConfigError, EndpointError, Template, first_line
from ..features.contexts import visible

KEY = "OPENAI_API_KEY"
"""The environment variable of the key, which is sent to the endpoint and written nowhere."""
Message = dict[str, str]
"""With a role and its content."""
_PATH = "/chat/completions"
_TRIES = 6
_SECONDS_TO_CONNECT = 10
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_LONGEST_TIMEOUT = 86_400.0
_MOST_BYTES, _BYTES_AT_ONCE = 4 << 20, 1 << 12
"""Of a response, decoded: at most, and, if it is compressed, before that, read at a time."""
_CODINGS = {"", "identity", "gzip"}
"""In which a response may come. A part of gzip grows a thousandfold at most."""
_LONGEST_ANSWER = 20_000
"""Its last characters, which have the form that was asked for."""
_LONGEST_REASON = 200
_RETRIED = {408, 409, 425, 429, *range(500, 600)}
_RENAMED = {"max_tokens": "max_completion_tokens", "temperature": None}
"""Options that some models refuse, and what these have in their place."""


class Endpoint:
    """Asks language models, each by its name at the endpoint.

    Arguments:
        url: the endpoint's address, e.g. http://localhost:8000/v1.
        key: sent with each request, if given.
        timeout: seconds to wait for a whole answer.
        max_tokens: of an answer; models that reason write more than they answer.

    Raises: ConfigError for an address that is none.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 300.0,
        max_tokens: int = 1000,
    ):
        expected = f"an address such as http://localhost:8000/v1; a key goes in {KEY}"
        require(_is_bare_address(url), "endpoint", _without_secrets(url), expected)
        is_legal = 0 < timeout <= _LONGEST_TIMEOUT
        require(is_legal, "timeout", timeout, f"above 0, and at most {_LONGEST_TIMEOUT:g}")
        require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
        self._key = (key or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no key has", instead="set it again")
        self.url = url.rstrip("/").removesuffix(_PATH) + _PATH
        self._timeout = timeout
        own = {"max_tokens": max_tokens, "temperature": 0}
        self._options: defaultdict[str, dict[str, Any]] = defaultdict(own.copy)
        """Of each model."""

    def check(self, model: str) -> None:
        """Ask for something short, and learn which options the model refuses.

        Raises: EndpointError if there is no answer, before anything else is measured or asked.
        """
        greeting = [{"role": "user", "content": "Answer with one word: yes"}]
        options = self._options[model]
        for _ in range(len(_RENAMED) + 1):
            try:
                self.answer(model, greeting, is_known=False)
            except EndpointError as error:
                refused = [name for name in _RENAMED if name in options and name in str(error)]
                if not (refused and _is_refusal(error)):
                    raise
                for name in refused:
                    value, other = options.pop(name), _RENAMED[name]
                    options.update({other: value} if other else {})
            else:
                return

    def answer(self, model: str, messages: list[Message], *, is_known: bool = True) -> str:
        """What a model answers. Tried again, with growing pauses, if the endpoint is busy or the connection fails.

        Arguments:
            is_known: whether there is an endpoint. If not, a connection that fails is not tried again.

        Raises: EndpointError if it refuses, or fails too often.
        """
        body = {"model": model, "messages": messages, **self._options[model]}
        problem, wait = "", _FIRST_WAIT
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(wait, _LONGEST_WAIT))
                wait = _FIRST_WAIT * 2**attempt
            try:
                status, headers, text = self._post(body)
            except OutOfTime:
                problem = f"no whole answer within {self._timeout:g} seconds"
                if is_known:
                    continue
                break
            except requests.RequestException as error:
                problem = f"no answer ({type(error).__name__}: {self._clean(first_line(error))})"
                if is_known:
                    continue
                break
            if status == 200:
                return self._content(text)
            problem = f"answered {status} ({self._clean(text) or 'no reason'})"
            if status not in _RETRIED:
                break
            wait = max(wait, _asked_for(headers))
        remedy: Any = ""
        if "answered 401" in problem or "answered 403" in problem:
            remedy = f"set {KEY} in the environment"
        elif "no whole answer" in problem:
            remedy = Template("give a larger {timeout}")
        elif "no answer" in problem:
            remedy = Template("check that a server answers at {endpoint}")
        elif "answered 404" in problem:
            remedy = Template("check the names of the models and the address in {endpoint}")
        raise EndpointError(f"{self.url}: {problem}", instead=remedy)

    def _post(self, body: dict[str, Any]) -> tuple[int, Any, str]:
        """The status, the headers and the content of a response.

        Raises: OutOfTime at the deadline. It is kept here and not in the thread that receives: to requests, a timeout
        is the longest silence between two bytes, and resolving a name has none.
        """
        found: Future[tuple[int, Any, str]] = Future()

        def receive() -> None:
            try:
                found.set_result(self._received(body, time.monotonic() + self._timeout))
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=receive, daemon=True).start()
        return found.result(self._timeout)

    def _received(self, body: dict[str, Any], deadline: float) -> tuple[int, Any, str]:
        content = bytearray()
        with (
            _Session() as session,
            session.post(
                self.url,
                json=body,
                auth=self._with_key,
                headers={"Accept-Encoding": "identity"},
                timeout=(_SECONDS_TO_CONNECT, self._timeout + 1),  # ends this thread
                stream=True,
            ) as response,
        ):
            coding = response.headers.get("Content-Encoding", "")
            if coding.lower() not in _CODINGS:
                raise self._strange(f"a response in the coding {self._clean(coding)}")
            for part in response.iter_content(_BYTES_AT_ONCE):
                content += part
                if len(content) > _MOST_BYTES:
                    raise self._strange(f"more than {_MOST_BYTES >> 20} MB")
                if time.monotonic() > deadline:
                    raise OutOfTime
        return response.status_code, response.headers, content.decode("utf-8", "replace")

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Also where there is no key: otherwise requests sends what ~/.netrc has for this host."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            what = f"something else than a chat completion ({self._clean(text)})"
            raise self._strange(what) from None
        return self._hidden(content)[-_LONGEST_ANSWER:] if isinstance(content, str) else ""

    def _strange(self, what: str) -> EndpointError:
        return EndpointError(
            f"{self.url}: answered with {what}", instead=Template("check {endpoint}")
        )

    def _hidden(self, text: str) -> str:
        """Without the key, which some endpoints quote."""
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, text: str) -> str:
        return visible(" ".join(self._hidden(text).split()), _LONGEST_REASON)


def _is_refusal(error: EndpointError) -> bool:
    """Whether the endpoint found fault with a request's options."""
    return "answered 400" in str(error) or "answered 422" in str(error)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: a redirected POST becomes a GET, and the key isn't sent elsewhere. Given one, requests reads all of
        the response."""


def _asked_for(headers: Any) -> float:
    """The seconds that Retry-After asks to wait, as a number or a date; 0 if it asks for nothing that can be read."""
    try:
        return float(Retry().parse_retry_after(headers.get("Retry-After", "0")))
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _is_bare_address(url: str) -> bool:
    """Whether a request can be sent there, and it holds no password or key."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        requests.Request("POST", url).prepare()
    except ValueError:  # and requests' own, which are ValueErrors
        return False
    is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_address and "@" not in parts.netloc and not (parts.query or parts.fragment)


def _without_secrets(url: str) -> str:
    """An address as a message shows it, also one that doesn't parse."""
    url = re.sub(r"^(\w*:?//)?.*@", r"\1[hidden]@", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?[hidden]", url, flags=re.DOTALL)
