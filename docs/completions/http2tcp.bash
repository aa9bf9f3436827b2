# bash completion for http2tcp
# Made from http2tcp/command/options.py by `python -m tests.generate`: change that, not this file.

_http2tcp() {
    local current=$2 before option word mode=any given=' ' candidates=()
    COMPREPLY=()

    # What stands before the cursor's word. COMP_WORDS does not do: bash splits at `=`, `:` and `@` too.
    before=${COMP_LINE:0:COMP_POINT}
    before=${before%"$current"}
    if [[ $before =~ [[:space:]](-[[:alnum:]]|--[[:alnum:]-]+)([[:space:]]+|=)[\"\']?$ ]]; then
        option=${BASH_REMATCH[1]}
    fi

    case $option in
        --config | --tls-cert | --tls-key | --log-file | --ca-file | --client-cert | --client-key | \
        --token-file)
            compopt -o default
            return
            ;;
        --allow | --deny | --path | --allow-origin | --admin | --admin-name | --forwarded-header | \
        --head-timeout | --connect-timeout | --grace | --resume | --resume-window | --resume-memory | \
        --max-detached | --max-detached-per-token | --node | --max-tunnels | --max-tunnels-per-token | \
        --max-unauthenticated | --max-unauthenticated-per-address | --max-failures-per-minute | --idle-timeout \
        | --max-session | --max-rate | --new-token | --as | -e | --endpoint | --user-agent | --tls-server-name \
        | --pin-sha256 | -L | --local-forward | -D | --dynamic-forward | --ssh-config | -t | --token | -d | \
        --destination | -l | --listen | --keepalive)
            return
            ;;
        --trusted-proxy)
            mapfile -t COMPREPLY < <(compgen -W 'unix' -- "$current")
            return
            ;;
        --log-format)
            mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$current")
            return
            ;;
        --transport)
            mapfile -t COMPREPLY < <(compgen -W 'auto tcp http2tcp/1.0 connect-tcp websocket' -- "$current")
            return
            ;;
        -H | --header)
            if [[ $current == @* ]]; then
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -P @ -- "${current#@}")
                return
            fi
            return
            ;;
        --proxy)
            if [[ $current == @* ]]; then
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen -f -P @ -- "${current#@}")
                return
            fi
            compopt -o nospace
            mapfile -t COMPREPLY < <(compgen -W 'http:// https:// socks5:// socks5h://' -- "$current")
            return
            ;;
    esac

    # What was given is not offered again, and of the two modes only the options of the one that was chosen.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            -s) word=--server ;;
            -c) word=--client ;;
            -e) word=--endpoint ;;
            -t) word=--token ;;
            -d) word=--destination ;;
            -v) word=--verbose ;;
            -q) word=--quiet ;;
            -h) word=--help ;;
            --allow | --deny | --allow-origin | --admin-name | --trusted-proxy | -H | --header | --pin-sha256 \
            | -L | --local-forward | -D | --dynamic-forward | -l | --listen) continue ;;
        esac
        case $word in
            --server) mode=server ;;
            --client | --ssh-config) mode=client ;;
        esac
        given+="$word "
    done
    if [[ $mode != client ]]; then
        candidates+=(
            --server --config --allow --deny --path --allow-origin --connect --tls-cert --tls-key --admin
            --admin-name --trusted-proxy --forwarded-header --proxy-protocol --head-timeout --connect-timeout
            --grace --resume --resume-window --resume-memory --max-detached --max-detached-per-token --node
            --max-tunnels --max-tunnels-per-token --max-unauthenticated --max-unauthenticated-per-address
            --max-failures-per-minute --idle-timeout --max-session --max-rate --keep-sessions --log-format
            --log-file --new-token --as
        )
    fi
    if [[ $mode != server ]]; then
        candidates+=(
            --client --endpoint --transport --header --user-agent --ca-file --client-cert --client-key
            --tls-server-name --pin-sha256 --local-forward --dynamic-forward --proxy --no-proxy --no-resume
            --fdpass --insecure --json --ssh-config
        )
    fi
    candidates+=(
        --token --token-file --destination --listen --keepalive --verbose --quiet --check --demo --version
        --help
    )
    for word in "${candidates[@]}"; do
        if [[ $word == "$current"* && $given != *" $word "* ]]; then
            COMPREPLY+=("$word")
        fi
    done
}

complete -F _http2tcp http2tcp
