"""What the OpenAPI document says of endpoints whose bodies FastAPI does not parse. Only text and schemas."""

from typing import Any

import msgspec
from fastapi import FastAPI

from serving import reviews, signals, told
from serving.errors import ErrorBody

_TEMPLATE = "#/components/schemas/{name}"
_BODIES = (told.Batch, signals.Results, ErrorBody, reviews.Question)
_, SCHEMAS = msgspec.json.schema_components(_BODIES, ref_template=_TEMPLATE)
_, _REVIEWS = msgspec.json.schema_components((reviews.Answer, reviews.Accepted), ref_template=_TEMPLATE)
SCHEMAS |= {f"Review{name}": schema for name, schema in _REVIEWS.items()}
SCHEMAS["SignalKind"]["enum"] = [
    kind for kind in SCHEMAS["SignalKind"]["enum"] if kind not in told.NOT_FROM_CLIENTS
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


def _examples(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in shown.items()}


_BEARER: list[dict[str, list[str]]] = [{"ApiKey": []}]

FEEDBACK: dict[str, Any] = {
    "summary": "Say what somebody did about a reply or a conversation",
    "description": (
        "`value` null in a thumb, rating, comparison, label or outcome, or `text` null in a comment or edit, "
        "takes back what the same user said before, in the same kind, about the same reply or conversation: "
        "it no longer counts."
    ),
    "security": _BEARER,
    "requestBody": {
        "required": True,
        **_json(_ref("Feedback"), examples=_examples(told.EXAMPLES)),
    },
    "responses": {
        "200": {"description": "The signal is durable", **_json(_ref("Accepted"))},
        **_errors(
            _400="A field that cannot be used; `param` names it",
            _401="No key, or an unknown one",
            _403="A label without the role operator",
            _404="No such reply or conversation, or another key's",
            _409="The idempotency key stands for other feedback",
            _413="The body is too large",
            _415="The body is not sent as JSON",
            _503="Not durable now; see Retry-After",
        ),
    },
}

FEEDBACK_BATCH: dict[str, Any] = {
    "summary": f"Feedback on up to {told.MAX_BATCH} replies or conversations at once",
    "description": (
        "Items are taken in their order and answered each on its own, as POST /v1/feedback would answer it: "
        "`accepted` or `error`. One that is refused keeps no other out."
    ),
    "security": _BEARER,
    "requestBody": {
        "required": True,
        **_json(_ref("Batch"), examples=_examples(told.BATCH_EXAMPLES)),
    },
    "responses": {
        "200": {"description": "Every item that is `accepted` is durable", **_json(_ref("Results"))},
        **_errors(
            _400="No list of feedback, or too long a one: nothing was taken",
            _401="No key, or an unknown one",
            _413="The body is too large",
            _415="The body is not sent as JSON",
        ),
    },
}

REVIEW_QUESTION: dict[str, Any] = {
    "summary": "What the review queue asks this rater next",
    "description": "Two replies to one prompt, side by side; without a `ticket`, nothing is left to ask.",
    "security": _BEARER,
    "responses": {
        "200": {"description": "A question, or none", **_json(_ref("Question"))},
        **_errors(
            _401="No key, or an unknown one",
            _403="The key has not the role reviewer",
            _503="The queue is out of reach; see Retry-After",
        ),
    },
}

REVIEW_ANSWER: dict[str, Any] = {
    "summary": "A rater's answer",
    "description": (
        "The last answer counts; `verdict` null takes it back. Count `revision` up with each change of mind. "
        "`both_bad` says that neither will do: where most raters do, each of the two gets a bad grade, and "
        "there is no pair."
    ),
    "security": _BEARER,
    "requestBody": {
        "required": True,
        **_json(
            _ref("ReviewAnswer"),
            example={"ticket": "5d0c…", "verdict": "left", "dimensions": {"honest": "tie"}},
        ),
    },
    "responses": {
        "200": {"description": "The answer is durable", **_json(_ref("ReviewAccepted"))},
        **_errors(
            _400="A field that cannot be used; `param` names it. Also a ticket that another rater was given",
            _401="No key, or an unknown one",
            _403="The key has not the role reviewer",
            _409="The same revision was used for another answer",
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
            {
                "name": "x-ratchet-learn",
                "in": "header",
                "schema": {"type": "string", "enum": ["true", "false"], "default": "true"},
                "description": "`false` withholds consent, as `store: false` does; either is enough",
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

    And once more the bodies of feedback: FastAPI leaves out nulls, also in examples.
    """
    made = api.openapi

    def document() -> dict[str, Any]:
        document = made()
        document["paths"]["/v1/chat/completions"] = CHAT
        for path, described in (("/v1/feedback", FEEDBACK), ("/v1/feedback/batch", FEEDBACK_BATCH)):
            document["paths"][path]["post"]["requestBody"] = described["requestBody"]
        components = document.setdefault("components", {})
        components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
        components["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
        return document

    api.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend it
