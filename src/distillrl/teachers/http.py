"""Asking a server: JSON over HTTP with bounded sizes, tries and threads; nothing but the address given is contacted."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from distillrl.errors import Failed, Misconfigured

MAX_ANSWER = 256 << 20
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass
class Client:
    """One server. Redirects are not followed; a try that fails in transit or with a status of overload is repeated."""

    address: str
    timeout: float = 30.0
    """Seconds a try may take."""
    retries: int = 3
    """Further tries after the first."""
    backoff: float = 0.25
    """Seconds before the second try, doubled each time."""
    concurrency: int = 8
    headers: Mapping[str, str] = field(default_factory=dict)
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Misconfigured(f"{self.address!r} is no address of a server; http://host:8000/v2/models/NAME is right")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise Misconfigured(f"{self.address}: concurrency must be at least 1, retries at least 0, timeout above 0")
        self.host, self.port, self.secure, self.path = parts.hostname, parts.port, parts.scheme == "https", parts.path.rstrip("/")

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """One exchange, tried again within bounds. Raises Failed with what the server said."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                status, data = self._once(method, path, body)
            except (TimeoutError, OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                continue
            if status < 300:
                return self._parsed(data)
            reason = f"status {status}: {data[:200].decode('utf-8', 'replace')}"
            if status not in WORTH_ANOTHER_TRY:
                break
        raise Failed(f"{self.address}{path} doesn't answer ({reason.strip()[:240]}) after {attempt + 1} {'tries' if attempt else 'try'}")

    def many(self, method: str, path: str, bodies: Sequence[Any], take: Callable[[int, Any], Any]) -> list[Any]:
        """Many exchanges, up to ``concurrency`` at a time; what ``take(number, answer)`` makes of each, in order.

        ``take`` is called as soon as its answer is there, so that what was paid for is kept where another one fails.
        Raises Failed at the first that fails, without beginning those that wait.
        """

        def one(number: int) -> Any:
            return take(number, self.json(method, path, bodies[number]))

        if len(bodies) <= 1:
            return [one(i) for i in range(len(bodies))]
        with ThreadPoolExecutor(min(self.concurrency, len(bodies))) as pool:
            waiting = [pool.submit(one, i) for i in range(len(bodies))]
            try:
                return [w.result() for w in waiting]
            except Failed:
                for w in waiting:
                    w.cancel()
                raise

    def _once(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout, context=ssl.create_default_context())
            if self.secure
            else http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        )
        try:
            payload = None if body is None else json.dumps(body, allow_nan=False).encode()
            headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if payload is not None else {}), **self.headers}
            connection.request(method, self.path + path, payload, headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER + 1)
        finally:
            connection.close()
        if len(data) > MAX_ANSWER:
            raise Failed(f"{self.address}{path} answers with more than the {MAX_ANSWER:,} bytes that are allowed")
        return response.status, data

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Failed(f"{self.address} answers what is no JSON ({str(error)[:80]})") from None
