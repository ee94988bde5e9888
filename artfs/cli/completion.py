"""`artfs completion`: scripts for shells, written from the parser itself, so that they cannot lag behind it.

The words that can follow are looked up in a table: the commands typed so far → subcommands and options.  Where no
option and no command fits, the shell completes files, which is right for mounts and mount points.
"""

from __future__ import annotations

from argparse import Action, _SubParsersAction
from collections.abc import Iterator

from artfs.cli.context import Context
from artfs.cli.parsing import Commands, Parser, build_parser

SHELLS = ("bash", "zsh", "fish")

BASH = """# artfs completion for bash:  eval "$(artfs completion bash)"
_artfs() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} path= next
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        next=${{COMP_WORDS[i]}}
        case "$path/$next" in
{paths}) path=$path/$next ;;
        esac
    done
    local words=
    case $path in
{words}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _artfs artfs
"""
ZSH = """#compdef artfs
# artfs completion for zsh:  eval "$(artfs completion zsh)", or as the file _artfs in $fpath
_artfs() {{
    local path_= next i
    for ((i = 2; i < CURRENT; i++)); do
        next=${{words[i]}}
        case "$path_/$next" in
{paths}) path_=$path_/$next ;;
        esac
    done
    local -a found
    case $path_ in
{words}
    esac
    if [[ $PREFIX == -* ]]; then
        compadd -- ${{(M)found:#-*}}
    else
        compadd -- ${{found:#-*}} && [[ ${{#${{found:#-*}}}} -gt 0 ]] || _files
    fi
}}
compdef _artfs artfs
"""


def add(commands: Commands) -> None:
    parser = commands.add(
        "completion",
        completion,
        "print a script that completes artfs' commands and options in a shell",
        [
            'eval "$(artfs completion bash)"                       in ~/.bashrc',
            "artfs completion zsh >~/.zfunc/_artfs",
            "artfs completion fish >~/.config/fish/completions/artfs.fish",
        ],
    )
    parser.add_argument("shell", choices=SHELLS)


def completion(ctx: Context) -> None:
    make = {"bash": bash, "zsh": zsh, "fish": fish}[ctx.args.shell]
    script = make(build_parser())
    ctx.out.result({"shell": ctx.args.shell, "script": script}, [script.rstrip("\n")])


def tree(parser: Parser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Every parser, with the commands that lead to it."""
    yield path, parser
    for name, child in _children(parser).items():
        yield from tree(child, (*path, name))


def _children(parser: Parser) -> dict[str, Parser]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            return dict(action.choices)
    return {}


def _helps(parser: Parser) -> dict[str, str]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            return {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {}


def words(parser: Parser) -> list[str]:
    """What can follow: commands, values of a choice that stands by itself, options."""
    found = list(_children(parser))
    for action in parser._actions:
        if not action.option_strings and action.choices and not isinstance(action, _SubParsersAction):
            found += map(str, action.choices)
    return found + [option for action in parser._actions for option in action.option_strings]


def bash(parser: Parser) -> str:
    paths, lines = _cases(parser)
    return BASH.format(paths=paths, words="\n".join(f"        {path}) words='{text}' ;;" for path, text in lines))


def zsh(parser: Parser) -> str:
    paths, lines = _cases(parser)
    return ZSH.format(paths=paths, words="\n".join(f"        {path}) found=({text}) ;;" for path, text in lines))


def _cases(parser: Parser) -> tuple[str, list[tuple[str, str]]]:
    """The pattern of all paths of commands, and what can follow each."""
    known = [("/" + "/".join(path) if path else "''", " ".join(words(child))) for path, child in tree(parser)]
    return " " * 12 + "|".join(path for path, _ in known if path != "''"), known


def fish(parser: Parser) -> str:
    lines = ["# artfs completion for fish"]
    for path, child in tree(parser):
        children = _children(child)
        seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in path)
        unseen = f"not __fish_seen_subcommand_from {' '.join(children)}" if children else ""
        condition = "; and ".join(filter(None, (seen, unseen)))
        when = f" -n {_quoted(condition)}" if condition else ""
        helps = _helps(child)
        for name in children:
            lines.append(f"complete -c artfs{when} -f -a {name} -d {_quoted(helps[name])}")
        for action in child._actions:
            if action.option_strings:
                lines.append(f"complete -c artfs{when}{_fish_option(action)}")
            elif action.choices and not isinstance(action, _SubParsersAction):
                lines.append(f"complete -c artfs{when} -f -a {_quoted(' '.join(map(str, action.choices)))}")
    return "\n".join(lines) + "\n"


def _fish_option(action: Action) -> str:
    text = ""
    for option in action.option_strings:
        text += f" -l {option[2:]}" if option.startswith("--") else f" -s {option[1:]}"
    if action.nargs != 0:
        text += " -r"
    if action.choices:
        text += f" -f -a {_quoted(' '.join(map(str, action.choices)))}"
    return text + (f" -d {_quoted(action.help)}" if action.help else "")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
