"""A language model behind an OpenAI-compatible endpoint: a hosted one, or a local server such as vLLM's, llama.cpp's
or Ollama's. The `openai` package sends the requests, retries failures that may pass, and waits as long as a busy server
asks."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import openai

from ..codes.contexts import visible
from ..config.checks import require
from ..errors import ConfigError, EndpointError, first_line

KEY = "OPENAI_API_KEY"
"""The environment variable with the key. The key is sent to the endpoint, and never written."""
Message = dict[str, str]
"""A message of a conversation: its "role" and "content"."""
_RETRIES = 5
_LONGEST_TIMEOUT = 86_400.0
_MOST_BYTES = 4 << 20
"""The most bytes of a decoded response that are read."""
_CUT = "is_cut"
_LONGEST_ANSWER = 20_000
"""The most characters of an answer. Its end is kept, as the part that was asked for is there."""
_LONGEST_REASON = 200


class _SmallResponses(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads at most _MOST_BYTES of a response.

    It keeps the beginning of a larger one, and sets _CUT in the extensions. It raises no error, because `openai` would take it
    for a failed connection and retry.
    """

    async def send(self, request: Any, **options: Any) -> Any:
        options["stream"] = True
        response = await super().send(request, **options)
        content, is_cut = bytearray(), False
        try:
            async for part in response.aiter_bytes():
                content += part
                if is_cut := len(content) > _MOST_BYTES:
                    del content[_LONGEST_REASON:]
                    break
        finally:
            await response.aclose()
        decoded = ("content-encoding", "content-length", "transfer-encoding")
        headers = {name: value for name, value in response.headers.items() if name not in decoded}
        return type(response)(
            response.status_code,
            headers=headers,
            content=bytes(content),
            request=request,
            extensions={_CUT: is_cut},
        )


class Endpoint:
    """Asks language models, each by its name at the endpoint.

        async with endpoint:
            await endpoint.answer("llama-3.1-8b", [{"role": "user", "content": "Hello"}])

    Arguments:
        url: the endpoint's address, e.g. http://localhost:8000/v1.
        key: sent with each request, if given.
        timeout: seconds to wait for a complete answer, retries included.
        max_tokens: the most tokens of an answer. Reasoning counts, too.

    Raises: ConfigError if `url` is not the address of a web server.
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
        if not _is_bare_address(url):
            raise ConfigError(name="endpoint", expected=expected)  # it may hold a password
        is_legal = 0 < timeout <= _LONGEST_TIMEOUT
        require(is_legal, "timeout", timeout, f"above 0, and at most {_LONGEST_TIMEOUT:g}")
        require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self._key = (key or "").strip()
        self._timeout = timeout
        self._max_tokens = max_tokens
        self._reasons: set[str] = set()
        """The models that refuse `max_tokens` and a temperature, e.g. OpenAI's reasoning models."""
        self._client: openai.AsyncOpenAI | None = None

    async def __aenter__(self) -> "Endpoint":
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or "EMPTY",  # as vLLM's guide has it
            timeout=self._timeout,
            http_client=_SmallResponses(),
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._client is not None
        await self._client.close()

    async def check(self, model: str) -> None:
        """Ask the model for one word, to see whether it answers and which options it takes.

        Raises: EndpointError if it doesn't answer.
        """
        greeting = [{"role": "user", "content": "Answer with one word: yes"}]
        try:
            await self.answer(model, greeting, retries=1)
        except EndpointError as error:
            if not isinstance(error.__cause__, openai.BadRequestError):
                raise
            self._reasons.add(model)
            await self.answer(model, greeting, retries=1)

    async def answer(self, model: str, messages: list[Message], *, retries: int = _RETRIES) -> str:
        """The text of a model's answer.

        Arguments:
            retries: how often to retry if the endpoint is busy or the connection fails.

        Raises: EndpointError if it refuses, keeps failing, or takes too long.
        """
        assert self._client is not None, "used as in `async with endpoint`"
        options: dict[str, Any] = (
            {"max_completion_tokens": self._max_tokens}
            if model in self._reasons
            else {"max_tokens": self._max_tokens, "temperature": 0}
        )
        client: Any = self._client.with_options(max_retries=retries)
        create = client.chat.completions.with_raw_response.create
        asked = create(model=model, messages=messages, **options)
        try:
            # openai's own timeout is the longest silence between two bytes.
            response = await asyncio.wait_for(asked, self._timeout)
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            what = f"no whole answer within {self._timeout:g} seconds"
            raise self._error(what, "give a larger timeout") from error
        except openai.APIStatusError as error:
            reason = self._clean(error.response.text) or "no reason"
            what, remedy = f"answered {error.status_code} ({reason})", ""
            if error.status_code in (401, 403):
                remedy = f"set {KEY} in the environment"
            elif error.status_code == 404:
                remedy = "check the names of the models and the address of the endpoint"
            raise self._error(what, remedy) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            what = f"no answer ({type(cause).__name__}: {self._clean(first_line(cause))})"
            raise self._error(what, "check that a server answers at the endpoint") from error
        if response.http_response.extensions[_CUT]:
            what = f"answered with more than {_MOST_BYTES >> 20} MB"
            raise self._error(what, "check the endpoint")
        return self._content(response.text)

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            what = f"answered with something else than a chat completion ({self._clean(text)})"
            raise self._error(what, "check the endpoint") from None
        return self._hidden(content)[-_LONGEST_ANSWER:] if isinstance(content, str) else ""

    def _error(self, what: str, remedy: Any) -> EndpointError:
        return EndpointError(f"{self.url}: {what}", instead=remedy)

    def _hidden(self, text: str) -> str:
        """Text with the key replaced. Some endpoints quote it."""
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, text: str) -> str:
        return visible(" ".join(self._hidden(text).split()), _LONGEST_REASON)


def _is_bare_address(url: str) -> bool:
    """Whether a text is the address of a web server, without a password or key."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        return is_address and "@" not in url and not (parts.query or parts.fragment)
    except ValueError:
        return False
