# Shared by the scripts here, which source it: sentences on failure, options, --dry-run.
# shellcheck shell=bash disable=SC2154,SC2034

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "bash is $BASH_VERSION here, and 4.4 or later is needed (on macOS: brew install bash)"

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Reads "ACTION [OPTION ...] [-- COMMAND ...]". Sets `action`, `command`, `dry_run`, and a variable for each
# option, - written _. The script says before what there is: actions=(…), valued=(…), switches=(…).
read_options() {
  [[ $# -gt 0 ]] || fail "say what to do: ${actions[*]} (see --help)"
  action=$1
  shift
  if [[ $action == -h || $action == --help ]]; then
    usage
    exit 0
  fi
  [[ " ${actions[*]} " == *" $action "* ]] || fail "unknown action '$action': one of ${actions[*]}"
  command=() dry_run=''
  local option variable
  for option in "${valued[@]}" "${switches[@]}"; do
    printf -v "${option//-/_}" %s ''
  done
  while [[ $# -gt 0 ]]; do
    option=${1%%=*}
    option=${option#--}
    variable=${option//-/_}
    case $1 in
      --dry-run)
        dry_run=yes
        shift
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        command=("$@")
        return
        ;;
      --*)
        if [[ " ${valued[*]} " == *" $option "* ]]; then
          if [[ $1 == *=* ]]; then
            printf -v "$variable" %s "${1#*=}"
            shift
          else
            [[ $# -ge 2 ]] || fail "$1 needs a value"
            printf -v "$variable" %s "$2"
            shift 2
          fi
        elif [[ " ${switches[*]} " == *" $option "* && $1 != *=* ]]; then
          printf -v "$variable" %s yes
          shift
        else
          fail "unknown option '$1': the command comes after -- (see --help)"
        fi
        ;;
      *) fail "unknown option '$1': the command comes after -- (see --help)" ;;
    esac
  done
}

needs() { # OPTION MEANING: fails where it was not given
  local variable=${1//-/_}
  [[ -n ${!variable} ]] || fail "$action needs --$1, $2"
}

tool() { # NAME ADVICE: fails where it is not installed
  [[ -n $dry_run ]] || command -v "$1" >/dev/null ||
    fail "$1 is not here: $2, or see the commands with --dry-run"
}

words() { # WORD ...: one line that a shell reads as the same words
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

act() { # COMMAND ...: runs it, or prints it
  if [[ -n $dry_run ]]; then
    printf '%s\n' "$(words "$@")"
  else
    "$@"
  fi
}

given() { # OPTION ...: sets `chosen` to --OPTION=VALUE, or --OPTION, of those that were given
  chosen=()
  local option variable
  for option in "$@"; do
    variable=${option//-/_}
    [[ -n ${!variable} ]] || continue
    if [[ " ${switches[*]} " == *" $option "* ]]; then
      chosen+=("--$option")
    else
      chosen+=("--$option=${!variable}")
    fi
  done
}
