"""Every setting there is, the command line, and the folder of a run that remembers its settings.

May import: the rooms whose settings it gathers. Imported by: theory, the programs, the files in configs/.
"""

from srpo_jax.config.settings import default, flatten, read, save, update

__all__ = ["default", "flatten", "read", "save", "update"]
