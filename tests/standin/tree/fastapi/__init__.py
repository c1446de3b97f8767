"""Routes with dependencies, which tests call as a client would."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dependency:
    """What a parameter with this default is given: the answer of `dependency`."""

    dependency: Callable[..., Any]


def Depends(dependency: Callable[..., Any]) -> Any:
    """Return the default of a parameter, typed as fastapi types it."""
    return Dependency(dependency)


class HTTPException(Exception):
    def __init__(self, status_code: int, detail: Any = None, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.status_code, self.detail, self.headers = status_code, detail, headers


class Headers:
    """Values by name. The case of a name does not matter."""

    def __init__(self, given: dict[str, str]):
        self._values = {name.lower(): value for name, value in given.items()}

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name.lower(), default)


@dataclass
class Request:
    app: Any
    headers: Headers = field(default_factory=lambda: Headers({}))

    @property
    def cookies(self) -> dict[str, str]:
        pairs = self.headers.get("Cookie", "").split("; ")
        return dict(p.split("=", 1) for p in pairs if "=" in p)


@dataclass
class Response:
    content: Any = None
    status_code: int = 200
    media_type: str | None = None


class FastAPI:
    def __init__(self) -> None:
        self._routes: list[
            tuple[str, re.Pattern[str], Callable[..., Any], Sequence[Dependency]]
        ] = []

    def add_api_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: list[str],
        dependencies: Sequence[Dependency] = (),
    ) -> None:
        pattern = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path))
        self._routes += [(method, pattern, endpoint, dependencies) for method in methods]

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """-> (status, answer)."""
        request = Request(self, Headers(headers or {}))
        for wanted, pattern, endpoint, dependencies in self._routes:
            match = pattern.fullmatch(path)
            if wanted != method or not match:
                continue
            try:
                for d in dependencies:
                    _resolve(d.dependency, request)
                return 200, endpoint(**match.groupdict())
            except HTTPException as e:
                return e.status_code, {"detail": e.detail}
        return 404, {"detail": "Not Found"}


def _resolve(function: Callable[..., Any], request: Request) -> Any:
    """Call it with what its parameters ask for: the request, or another function's answer."""
    if not inspect.isroutine(function):
        return function(request)
    given = {
        p.name: _resolve(p.default.dependency, request)
        if isinstance(p.default, Dependency)
        else request
        for p in inspect.signature(function).parameters.values()
    }
    return function(**given)
