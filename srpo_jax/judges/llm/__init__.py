"""A language model behind an OpenAI-compatible endpoint as the judge: what is asked (prompts), of whom
(endpoint), what came back (answer), what it says (verdict), what is kept (store), and all of it (judge).
"""

from srpo_jax.judges.llm.judge import LlmJudge

__all__ = ["LlmJudge"]
