"""Posts of Reddit with their summaries, in the schemas in which people keep them."""

from collections.abc import Mapping
from typing import Any

from srpo_jax.data.columns import Malformed, Unusable

_HEAD = (("SUBREDDIT", "subreddit"), ("TITLE", "title"))
_ASKS = "TL;DR:"  # the end of a prompt, which the template brings


def text(info: Mapping[str, Any]) -> str:
    """A post of TL;DR with its subreddit and title, or an article of CNN/DM, as one text.

    Raises Unusable where there is neither.
    """
    post = info.get("post") or info.get("article")
    if not isinstance(post, str):
        raise Unusable("there is neither a post nor an article")
    head = [f"{name}: {info[key]}" for name, key in _HEAD if info.get(key)]
    return "\n".join([*head, f"POST: {post}" if head else post])


def summarized(record: Mapping[str, Any]) -> tuple[str, Any]:
    """A post, put as `text` puts those of comparisons, and the author's summary, whatever is there.

    subreddit, title, post, summary (OpenAI's filtered posts); or info and summary (its `axis`); or prompt
    and completion, or prompt and label (TRL's and CarperAI's copies). Raises Malformed for others.
    """
    if isinstance(record.get("prompt"), str):
        prompt = record["prompt"].strip().removesuffix(_ASKS).rstrip()
        return prompt, record.get("completion", record.get("label"))
    post = record.get("info", record)
    if not isinstance(post, Mapping) or not isinstance(post.get("post"), str):
        raise Malformed("subreddit, title and post are expected, or info with them, or prompt")
    summary = record.get("summary")
    return text(post), summary.get("text") if isinstance(summary, Mapping) else summary
