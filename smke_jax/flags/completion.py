"""`smke completion`: prints what makes a shell complete programs and flags with the Tab key.

In ~/.bashrc:                 eval "$(smke completion bash)"
In ~/.zshrc, after compinit:  eval "$(smke completion zsh)"
"""

from smke_jax.flags import Parser, program_parser

SHELLS = ("bash", "zsh")


def parser() -> Parser:
    """The parser of `smke completion`."""
    parser = program_parser("completion", __doc__)
    parser.add_argument("shell", choices=SHELLS)
    return parser
