"""How x, and x with a completion to improve, are put to the model: templates, renderer, chat templates.

May import: data (tokenizers, messages), runtime. Imported by: training, revision, the programs. No
model, no mesh.
"""

from srpo_jax.prompts.environment import Arguments
from srpo_jax.prompts.renderer import Prompt, Renderer, sequences
from srpo_jax.prompts.templates import TEMPLATES, Template, X, Y

__all__ = ["TEMPLATES", "Arguments", "Prompt", "Renderer", "Template", "X", "Y", "sequences"]
