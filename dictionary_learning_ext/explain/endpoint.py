"""A language model behind an OpenAI-compatible endpoint: a hosted one, or a local server such as vLLM's, llama.cpp's
or Ollama's."""

import json
import time
from collections import defaultdict
from typing import Any
from urllib.parse import urlsplit

import requests

from ..config.checks import require
from ..errors import ConfigError, EndpointError, Setting, first_line
from ..features.contexts import visible

KEY = "OPENAI_API_KEY"
"""The environment variable of the key, which is sent to the endpoint and written nowhere."""
Message = dict[str, str]
"""With a role and its content."""
_PATH = "/chat/completions"
_TRIES = 6
_SECONDS_TO_CONNECT = 10
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
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
        timeout: seconds to wait for an answer.
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
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_bare = not (parts.username or parts.password or parts.query or parts.fragment)
        expected = f"an address such as http://localhost:8000/v1; a key goes in {KEY}"
        require(is_address and is_bare, "endpoint", url, expected)
        require(timeout > 0, "timeout", timeout, "above 0")
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
            asked_for = headers.get("Retry-After", "")
            wait = max(wait, float(asked_for)) if asked_for.isdecimal() else wait
        remedy: Any = ""
        if "answered 401" in problem or "answered 403" in problem:
            remedy = f"set {KEY} in the environment"
        elif "no answer" in problem:
            remedy = ("check that a server answers at ", Setting("endpoint"))
        elif "answered 404" in problem:
            remedy = ("check the names of the models and the address in ", Setting("endpoint"))
        raise EndpointError(f"{self.url}: {problem}", instead=remedy)

    def _post(self, body: dict[str, Any]) -> tuple[int, Any, str]:
        """The status, the headers and the content of a response."""
        response = requests.post(
            self.url,
            json=body,
            auth=self._with_key,
            timeout=(_SECONDS_TO_CONNECT, self._timeout),
            allow_redirects=False,  # a redirected POST becomes a GET, and the key isn't sent elsewhere
        )
        return response.status_code, response.headers, response.content.decode("utf-8", "replace")

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Also where there is no key: otherwise requests sends what ~/.netrc has for this host."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            what = f"{self.url}: answered with something else than a chat completion"
            raise EndpointError(
                f"{what} ({self._clean(text)})", instead=("check ", Setting("endpoint"))
            ) from None
        return self._hidden(content)[-_LONGEST_ANSWER:] if isinstance(content, str) else ""

    def _hidden(self, text: str) -> str:
        """Without the key, which some endpoints quote."""
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, text: str) -> str:
        return visible(" ".join(self._hidden(text).split()), _LONGEST_REASON)


def _is_refusal(error: EndpointError) -> bool:
    """Whether the endpoint found fault with a request's options."""
    return "answered 400" in str(error) or "answered 422" in str(error)
