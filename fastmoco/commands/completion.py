"""`fastmoco completion`: a script that completes commands, options and presets on the TAB key.

The script holds all words, so that a press of the key starts no Python. Print it again after an
update.
"""

from fastmoco.commands.command import Command
from fastmoco.errors import UsageError

BASH = r"""_fastmoco() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} key="" words=""
  [ "${{COMP_WORDS[COMP_CWORD-1]}}" = "=" ] && key=${{COMP_WORDS[COMP_CWORD-2]}}=
  [ "$cur" = "=" ] && key=${{COMP_WORDS[COMP_CWORD-1]}}= cur=""
  if [ "$COMP_CWORD" = 1 ]; then words="{commands}"; else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$key$cur"))
  COMPREPLY=("${{COMPREPLY[@]#"$key"}}")
  [ "${{COMPREPLY[*]}}" = "" ] && COMPREPLY=()  # then bash completes file names
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
complete -o default -F _fastmoco fastmoco
"""
ZSH = r"""#compdef fastmoco
_fastmoco() {{
  local -a words_known
  if (( CURRENT == 2 )); then words_known=({commands}); else
    case $words[2] in
{cases}
    esac
  fi
  compadd -S '' -- $words_known
  compset -P '*=' ; _files
}}
compdef _fastmoco fastmoco
"""
FISH = r"""complete -c fastmoco -n __fish_use_subcommand -f -a "{commands}"
{cases}
"""
CASES = {
    "bash": '      {name}) words="{words}" ;;',
    "zsh": "      {name}) words_known=({words}) ;;",
    "fish": 'complete -c fastmoco -n "__fish_seen_subcommand_from {name}" -a "{words}"',
}
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(shell: str) -> str:
    """The script for a shell.

    Raises:
        UsageError: If the shell is unknown.
    """
    if shell not in SCRIPTS:
        raise UsageError(f"SHELL must be one of {', '.join(SCRIPTS)}, got {shell}")
    from fastmoco.commands import COMMANDS

    cases = [
        CASES[shell].format(name=name, words=" ".join(words_of(command.config)))
        for name, command in COMMANDS.items()
        if command.config
    ]
    return SCRIPTS[shell].format(commands=" ".join([*COMMANDS, "help"]), cases="\n".join(cases))


def words_of(schema: type) -> list[str]:
    """``key=`` of each option, and ``key=VALUE`` where the values are known."""
    from fastmoco.configuration import preset_groups, preset_names
    from fastmoco.schema_options import describe

    words = []
    for key, kind, _ in describe(schema):
        values = kind.split("|") if "|" in kind and not kind.startswith("list") else [""]
        words += [f"{key}={value}" for value in values]
    for group, presets in preset_groups(schema).items():
        words += [f"{group}={name}" for name in preset_names(group, presets)]
    return words


def _run(arguments: list[str], _: None) -> str:
    return completion(arguments[0])


COMMAND = Command(
    name="completion",
    arguments=("SHELL",),
    options="",
    summary="print the script for the TAB key in bash, zsh or fish",
    examples=(
        'eval "$(fastmoco completion bash)"                            # in ~/.bashrc',
        "fastmoco completion zsh > ~/.zfunc/_fastmoco                  # a folder in fpath",
        "fastmoco completion fish > ~/.config/fish/completions/fastmoco.fish",
    ),
    run=_run,
)
