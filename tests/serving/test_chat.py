"""Chat completions as OpenAI's SDK sees them, and the turns they leave in the log."""

from tests.serving.conftest import STABLE, Running


def test_sdk_gets_a_whole_reply(gateway: Running) -> None:
    """Any OpenAI client works by changing its base URL."""
    reply = gateway.sdk().chat.completions.create(
        model="ratchet", messages=[{"role": "user", "content": "How do I reset it?"}]
    )
    assert reply.choices[0].message.content == "Reset it in the settings."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == STABLE
    assert reply.usage is not None and reply.usage.completion_tokens == 3


def test_sdk_gets_a_stream(gateway: Running) -> None:
    chunks = list(
        gateway.sdk().chat.completions.create(
            model="ratchet",
            messages=[{"role": "user", "content": "How do I reset it?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert said == ["Reset it", " in the", " settings."]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["ratchet"]["adapter"] == STABLE
