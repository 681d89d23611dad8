"""`smke completion`: the work behind smke_jax/flags/completion.py, which says what it does."""

import argparse
import shlex
import sys
from collections.abc import Iterator

from smke_jax.__main__ import run_program
from smke_jax.flags import PROGRAMS, parser_of
from smke_jax.flags.completion import parser

BASH = """\
_smke() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} flag= words=
    # Bash makes three words of --flag=value.
    if [[ $word == "=" ]]; then
        flag=$before word=
    elif [[ $before == "=" ]]; then
        flag=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if (( COMP_CWORD == 1 )); then
        words={programs}
    else
        case "${{COMP_WORDS[1]}} $flag" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${{COMPREPLY-}} == *= ]]; then compopt -o nospace; fi
}}
complete -o default -F _smke smke
"""
ZSH = """\
_smke() {{
    if (( CURRENT == 2 )); then
        local -a programs=({programs})
        _describe program programs
        return
    fi
    shift words
    (( CURRENT-- ))
    case $words[1] in
{cases}
    esac
}}
compdef _smke smke
"""


def main(argv: list[str]) -> int:
    """Parses the command line and prints the script."""
    print({"bash": _bash, "zsh": _zsh}[parser().parse_args(argv).shell](), end="")
    return 0


def _bash() -> str:
    cases = []
    for name in PROGRAMS:
        actions = list(_actions(parser_of(name)))
        words = [flag + ("=" if _takes_value(action) else "") for action in actions for flag in _long(action)]
        words += [word for action in actions if not action.option_strings for word in action.choices or ()]
        cases.append((f"{name} ", words))
        cases += [(f"{name} {flag}", action.choices) for action in actions if action.choices for flag in _long(action)]
    lines = [f'        "{pattern}") words={shlex.quote(" ".join(words))} ;;' for pattern, words in cases]
    return BASH.format(programs=shlex.quote(" ".join(PROGRAMS)), cases="\n".join(lines))


def _zsh() -> str:
    programs = (shlex.quote(f"{name}:{program.summary}") for name, program in PROGRAMS.items())
    cases = []
    for name in PROGRAMS:
        specs = " ".join(shlex.quote(spec) for action in _actions(parser_of(name)) for spec in _specs(action))
        cases.append(f"        {name}) _arguments {specs} ;;")
    return ZSH.format(programs=" ".join(programs), cases="\n".join(cases))


def _specs(action: argparse.Action) -> list[str]:
    """The action as the arguments of zsh's `_arguments`."""
    values = f":{action.dest}:" + (f"({' '.join(action.choices)})" if action.choices else "_files")
    if not action.option_strings:
        return [f"*{values}" if action.nargs in ("*", "+") else values]
    again = "*" if isinstance(action, argparse._AppendAction) else ""
    what = ((action.help or "") % {"default": action.default}).translate(str.maketrans("[]:", "() "))
    return [f"{again}{flag}=[{what}]{values}" if _takes_value(action) else f"{flag}[{what}]" for flag in _long(action)]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What the parser takes, and once each what the parsers of its own commands take."""
    seen = set()
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for other in action.choices.values():
                for own in other._actions:
                    if own.dest != "help" and own.dest not in seen:
                        seen.add(own.dest)
                        yield own


def _long(action: argparse.Action) -> list[str]:
    return [flag for flag in action.option_strings if flag.startswith("--")]


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
