"""`python -m srpo_jax` says which programs there are."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_jax.config import command


def programs() -> dict[str, str]:
    """{name: what it does}, as the first line of each program says."""
    found = {}
    here = Path(__file__).parent
    for path in sorted([*here.glob("[a-z]*.py"), *here.glob("[a-z]*/__main__.py")]):
        text = path.read_text(encoding="utf-8")
        if path.name == "__main__.py" or '__name__ == "__main__"' in text:
            name = path.parent.name if path.name == "__main__.py" else path.stem
            found[name] = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return found


def main(arguments: Sequence[str] = ()) -> int:
    """arguments: there are none (but --help), or the exit status is 2."""
    if arguments and arguments[0] not in ("--help", "-h"):
        first = arguments[0]
        instead = f"srpo_jax.{first}" if first in programs() else "srpo_jax"
        print(f"error: {first} is no argument here: python -m {instead}", file=sys.stderr)
        return 2
    print("Programs, each with --help:\n")
    for name, purpose in programs().items():
        print(f"    python -m srpo_jax.{name:<11} {purpose}")
    names = ", ".join(command.shipped())
    print(f"\nConfigurations that come with them, for --config=NAME: {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
