"""What the OpenAPI document says of endpoints whose bodies FastAPI does not parse. Only text and schemas."""

from typing import Any

import msgspec
from fastapi import FastAPI

from serving import signals
from serving.errors import ErrorBody

_TEMPLATE = "#/components/schemas/{name}"
_, SCHEMAS = msgspec.json.schema_components(
    (signals.Feedback, signals.Accepted, ErrorBody), ref_template=_TEMPLATE
)
SCHEMAS["SignalKind"]["enum"] = [
    kind for kind in SCHEMAS["SignalKind"]["enum"] if kind not in signals.READ_FROM_TRAFFIC
]


def _json(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema, **more}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _TEMPLATE.format(name=name)}


def _errors(**statuses: str) -> dict[str, Any]:
    return {
        status.removeprefix("_"): {"description": why, **_json(_ref("ErrorBody"))}
        for status, why in statuses.items()
    }


_BEARER: list[dict[str, list[str]]] = [{"ApiKey": []}]

FEEDBACK: dict[str, Any] = {
    "summary": "Say what somebody did about a reply",
    "description": (
        "`value` null in a thumb, rating, comparison or label takes back what the same user said before, "
        "in the same kind, about the same reply: it no longer counts."
    ),
    "security": _BEARER,
    "requestBody": {
        "required": True,
        **_json(
            _ref("Feedback"), examples={name: {"value": value} for name, value in signals.EXAMPLES.items()}
        ),
    },
    "responses": {
        "200": {"description": "The signal is durable", **_json(_ref("Accepted"))},
        **_errors(
            _400="A field that cannot be used; `param` names it",
            _401="No key, or an unknown one",
            _403="A label without the role operator",
            _404="No such reply, or another key's",
            _409="The idempotency key stands for other feedback",
            _413="The body is too large",
            _415="The body is not sent as JSON",
            _503="Not durable now; see Retry-After",
        ),
    },
}

CHAT: dict[str, Any] = {
    "post": {
        "summary": "Chat completion, as in OpenAI's API, streamed or whole",
        "operationId": "chat_completions",
        "security": _BEARER,
        "parameters": [
            {
                "name": "x-ratchet-conversation",
                "in": "header",
                "schema": {"type": "string", "maxLength": 200},
                "description": "Names the conversation, as `metadata.conversation_id` does",
            },
            {
                "name": "x-ratchet-user",
                "in": "header",
                "schema": {"type": "string", "maxLength": 512},
                "description": "Names the end user, as `user` does; stored as a pseudonym",
            },
        ],
        "requestBody": {
            "required": True,
            **_json(
                {
                    "type": "object",
                    "required": ["messages"],
                    "properties": {
                        "model": {"type": "string", "default": "ratchet"},
                        "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                        "stream": {"type": "boolean", "default": False},
                        "user": {"type": "string"},
                        "store": {"type": "boolean", "default": True},
                        "ratchet": {
                            "type": "object",
                            "properties": {"compare": {"type": "boolean", "default": False}},
                            "description": "`compare`: two replies may come, to be shown side by side",
                        },
                    },
                },
                example={
                    "model": "ratchet",
                    "messages": [{"role": "user", "content": "How do I reset my password?"}],
                },
            ),
        },
        "responses": {
            "200": {
                "description": "The reply, with `ratchet` beside OpenAI's fields",
                **_json({"type": "object"}),
            },
            **_errors(
                _400="A field that cannot be used; `param` names it",
                _401="No key, or an unknown one",
                _404="A model that is not served",
                _413="The body is too large",
                _415="The body is not sent as JSON",
                _502="The engine failed",
                _503="No engine, too many requests, or no log; see Retry-After",
            ),
        },
    }
}


def complete(api: FastAPI) -> None:
    """Give `api`'s document the completions path, the schemas and how to authenticate.

    And once more the body of feedback: FastAPI leaves out nulls, also in examples.
    """
    made = api.openapi

    def document() -> dict[str, Any]:
        document = made()
        document["paths"]["/v1/chat/completions"] = CHAT
        document["paths"]["/v1/feedback"]["post"]["requestBody"] = FEEDBACK["requestBody"]
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
        components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
        return document

    api.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend it
