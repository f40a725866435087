"""People with one plain wish: they chat through OpenAI's SDK, judge every reply, ask again and edit."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai


@dataclass(frozen=True)
class People:
    sdk: openai.OpenAI
    """Without retries, so that a request that fails fails the test."""
    like: Callable[[str], bool]
    improve: Callable[[str], str]
    """A reply as they would have it."""
    max_tokens: int

    def ask(self, user: str, question: str, seed: int, **more: Any) -> Any:
        """One reply; the same question again is the same conversation."""
        return self.sdk.chat.completions.create(
            messages=[{"role": "user", "content": question}],
            user=user,
            seed=seed,
            **{"model": "ratchet", "max_tokens": self.max_tokens, **more},
        )

    def chat(
        self, users: Sequence[str], questions: Sequence[str], *, judging: bool = False, threads: int = 8
    ) -> list[Any]:
        """Each question once, by one user after the other; every first reply, in the questions' order."""

        def converse(n: int) -> Any:
            user, question = users[n % len(users)], questions[n]
            reply = self.ask(user, question, n)
            if judging:
                self._react(user, question, n, reply)
            return reply

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(converse, range(len(questions))))

    def likes(self, reply: Any) -> bool:
        return self.like(said(reply))

    def _react(self, user: str, question: str, n: int, reply: Any) -> None:
        """A thumb; what they do not like is asked for again, and once more put right by hand."""
        self._judge(reply, kind="thumb", value=float(self.likes(reply)))
        if not self.likes(reply):
            second = self.ask(user, question, 1000 + n)
            self._judge(second, kind="thumb", value=float(self.likes(second)))
            if not self.likes(second):
                self._judge(second, kind="edit", text=self.improve(said(second)))

    def _judge(self, reply: Any, **feedback: Any) -> None:
        self.sdk.post("/feedback", body={"response_id": reply.id, **feedback}, cast_to=object)


def said(reply: Any) -> str:
    return str(reply.choices[0].message.content)
