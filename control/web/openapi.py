"""The OpenAPI document of the REST interface (floor 5), made of the table of requests and of `schemas/`.

Source: OpenAPI Specification 3.1.1, whose schemas are JSON Schema 2020-12, as ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from control import __version__
from control.paths import SCHEMAS
from control.web.routes import Route

FAILURE = "failure"


def build_openapi(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document; the schemas it refers to are in it."""
    used: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _describe(route, used)
    _use(FAILURE, used)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "unhinged web",
            "version": __version__,
            "description": "What `unhinged` does with machines, over HTTP. Errors have the form of --json.",
        },
        "paths": paths,
        "components": {
            "schemas": used,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "unhinged-PORT"},
            },
        },
    }


def _describe(route: Route, used: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
        for name, what in route.query.items()
    ]
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z]+', '_', route.path.replace('/api', ''))}".rstrip("_"),
        "responses": {"default": {"description": "what went wrong", "content": _json(_error(used))}},
    }
    if parameters:
        found["parameters"] = parameters
    if route.needs != "nobody":
        found["security"] = [{"token": []}, {"session": []}]
        found["x-needs"] = route.needs
    if route.takes:
        found["requestBody"] = {"content": _json(_use(route.takes, used))}
    elif route.raw_body:
        found["requestBody"] = {"content": {"application/octet-stream": {}}}
    if route.opens_socket:
        found["responses"]["101"] = {"description": "a WebSocket"}
    elif "/" in route.gives and not (SCHEMAS / f"{route.gives}.json").exists():
        found["responses"]["200"] = {"description": "done", "content": {route.gives: {}}}
    else:
        found["responses"]["200"] = {"description": "done", "content": _json(_use(route.gives, used))}
    return found


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _error(used: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"error": _use(FAILURE, used)}, "required": ["error"]}


def _use(name: str, used: dict[str, Any]) -> dict[str, Any]:
    """Have the schema `name` in the document, and refer to it."""
    key = name.replace("/", ".")
    if key not in used:
        text = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
        schema = json.loads(text)
        used[key] = schema
        # What it points to within itself is elsewhere from now on.
        used[key] = json.loads(text.replace('"#/$defs/', f'"#/components/schemas/{key}/$defs/'))
        used[key].pop("$schema", None)
        used[key].pop("$id", None)  # references within the document would else be relative to that
    return {"$ref": f"#/components/schemas/{key}"}
