# shellcheck shell=bash
# hyperpagectl.bash: completes hyperpagectl's commands and options in bash, from what its --help says, so that it knows
# neither more nor less. For /usr/share/bash-completion/completions/hyperpagectl, or to be sourced.

# What --help calls an option without a value.
_hyperpagectl_flags() {
    "$1" --help 2> /dev/null | grep -o '\[--[a-z-]*\]' | tr -d '[]'
}

# The lines of --help that are commands: name, words and [options].
_hyperpagectl_commands() {
    "$1" --help 2> /dev/null | sed -n '/^Commands:/,/^Exit codes/s/^  \([a-z]\)/\1/p'
}

_hyperpagectl() {
    local program=${COMP_WORDS[0]} cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local said="" line word flags i
    COMPREPLY=()
    case $prev in
        --config | --token-file | --cacert) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && return ;;
        export | import) [[ $cur == -* ]] || { mapfile -t COMPREPLY < <(compgen -f -- "$cur") && return; } ;;
        --run-dir | --state-dir) mapfile -t COMPREPLY < <(compgen -d -- "$cur") && return ;;
        --priority) mapfile -t COMPREPLY < <(compgen -W "low normal high" -- "$cur") && return ;;
        --timeout | --pod | --url) return ;;
    esac
    flags=$'\n'$(_hyperpagectl_flags "$program")$'\n'
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --*=*) ;;
            --*) [[ $flags == *$'\n'$word$'\n'* ]] || i=$((i + 1)) ;; # and its value
            *) said+="$word " ;;
        esac
    done
    local words=""
    if [[ $cur != -* ]]; then
        case $said in
            "jobs ") words="pending running completed failed cancelled timeout" ;;
            "send ") words="cache_invalidate rate_limit_sync job_coordination broadcast" ;;
        esac
    fi
    if [[ $cur == -* ]]; then words="--json --timeout --config --run-dir --state-dir --url --token-file --cacert --help --version"; fi
    while read -r line; do
        if [[ $cur == -* && -n $said && "$line " == "$said"* ]]; then
            words+=" $(grep -o -e '--[a-z-]*' <<< "$line" | tr '\n' ' ')"
        elif [[ $cur != -* && $line == "$said"[a-z]* ]]; then
            line=${line#"$said"}
            words+=" ${line%% *}"
        fi
    done < <(_hyperpagectl_commands "$program")
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur" | sort -u)
}
complete -F _hyperpagectl hyperpagectl
