"""The OpenAPI 3.1 document, made from the endpoints and their models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from k2.web.endpoint import Endpoint
from k2.web.formats import MEDIA_TYPES

_REF: Final = "#/components/schemas/{model}"
_FAILURE: Final = {"$ref": "#/components/schemas/Failure"}
_OPEN_STATUSES: Final = {
    400: "The body is no JSON object",
    422: "A parameter has a value that is not allowed",
}
_KEY_STATUSES: Final = {
    401: "No key",
    403: "A wrong key, or one that may not do this",
    413: "The body is too large",
    429: "Too many requests, or too many queries wait; see Retry-After",
    503: "The platform protects itself, or the lake is away; see Retry-After",
    504: "The query ran into its deadline",
}
_FAILURE_SCHEMA: Final = {
    "type": "object",
    "required": ["success", "detail", "meta"],
    "properties": {
        "success": {"const": False},
        "detail": {
            "type": "object",
            "required": ["error", "message"],
            "properties": {
                "error": {"type": "string"},
                "message": {"type": "string"},
                "parameter": {"type": "string"},
                "allowed": {"type": "string"},
            },
        },
        "meta": {"$ref": "#/components/schemas/Meta"},
    },
}
_META_SCHEMA: Final = {
    "type": "object",
    "required": ["correlation_id", "timestamp"],
    "properties": {
        "correlation_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "as_of": {"type": "object", "description": "Per table: snapshot, vector digest, hot rows"},
        "partial": {"type": "boolean", "description": "Rows are missing for now"},
    },
}
_PAGE_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "limit": {"type": "integer"},
        "offset": {"type": "integer"},
        "total": {"type": ["integer", "null"]},
        "has_more": {"type": "boolean"},
        "next_cursor": {"type": ["string", "null"]},
    },
}


def openapi(
    endpoints: Iterable[Endpoint], schemas: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """The document. `schemas`: what the endpoints' `gives` refer to."""
    paths: dict[str, dict[str, Any]] = {}
    components = {
        **schemas,
        "Failure": _FAILURE_SCHEMA,
        "Meta": _META_SCHEMA,
        "Page": _PAGE_SCHEMA,
    }
    for endpoint in endpoints:
        schema = endpoint.takes.model_json_schema(ref_template=_REF, mode="validation")
        components.update(schema.pop("$defs", {}))
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schema)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "K2",
            "version": version,
            "description": "Market data: SQL and records over hot and cold rows.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
        },
    }


def _operation(endpoint: Endpoint, schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = dict(schema.get("properties", {}))
    required = set(schema.get("required", ()))
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}{endpoint.path.translate(_PLAIN)}",
        "tags": [endpoint.tag],
        "responses": _responses(endpoint),
    }
    if endpoint.scope is not None:
        found["security"] = [{"key": []}]
        found["description"] = f"Needs a key with the scope `{endpoint.scope}`."
    parameters = [
        _parameter(name, properties.pop(name), "path", True) for name in endpoint.path_names
    ]
    if endpoint.method == "GET":
        parameters += [
            _parameter(name, shape, "query", name in required) for name, shape in properties.items()
        ]
    else:
        body = {
            "type": "object",
            "properties": properties,
            "required": sorted(required - set(endpoint.path_names)),
            "additionalProperties": False,
        }
        content = {"application/json": {"schema": body}}
        found["requestBody"] = {"required": True, "content": content}
    if parameters:
        found["parameters"] = parameters
    return found


_PLAIN: Final = str.maketrans({"/": "_", "{": "", "}": "", ".": "_"})


def _parameter(name: str, shape: Mapping[str, Any], where: str, required: bool) -> dict[str, Any]:
    plain = {key: value for key, value in shape.items() if key not in ("title", "description")}
    kinds = [kind for kind in plain.get("anyOf", [plain]) if kind.get("type") != "null"]
    if len(kinds) == 1:
        # Null is left out of a query by leaving the parameter out.
        plain = {**kinds[0], **({"default": plain["default"]} if plain.get("default") else {})}
    found = {"name": name, "in": where, "required": required, "schema": plain}
    if plain.get("type") == "array":
        found.update(style="form", explode=False)
    if "description" in shape:
        found["description"] = shape["description"]
    return found


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.media_type: {"schema": _success(endpoint)}}
    if endpoint.media_type != "application/json":
        content = {endpoint.media_type: {"schema": {"type": "string"}}}
    if endpoint.path == "/openapi.json":
        content = {endpoint.media_type: {"schema": {"type": "object"}}}
    if endpoint.formats:
        for media_type in MEDIA_TYPES.values():
            content.setdefault(media_type, {"schema": {"type": "string"}})
    found: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    statuses = dict(_OPEN_STATUSES)
    if endpoint.scope is not None:
        statuses.update(_KEY_STATUSES)
        found["304"] = {"description": "Not changed since the ETag given"}
    elif endpoint.path in ("/health", "/health/ready"):
        found["503"] = {"description": "Not ready", "content": content}
    for status, meaning in {**statuses, **endpoint.statuses}.items():
        failure = {"application/json": {"schema": _FAILURE}}
        found[str(status)] = {"description": meaning, "content": failure}
    return found


def _success(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["success", "data", "meta"],
        "properties": {
            "success": {"type": "boolean"},
            "data": dict(endpoint.gives),
            "pagination": {"$ref": "#/components/schemas/Page"},
            "meta": {"$ref": "#/components/schemas/Meta"},
        },
    }
