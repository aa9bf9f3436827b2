# fish completions for http2tcp
# Made from http2tcp/command/options.py by `python -m tests.generate`: change that, not this file.

function __http2tcp_server --description 'Whether the command may become a server'
    not __fish_contains_opt -s c client ssh-config
end

function __http2tcp_client --description 'Whether the command may become a client'
    not __fish_contains_opt -s s server
end

function __http2tcp_at_file --description 'Files behind an @'
    set -l start (commandline --current-token | string replace --regex '^(-H|--header=|--proxy=)' '')
    if string match --quiet '@*' -- $start
        set -l name (string sub --start 2 -- $start)
        for file in $name*
            test -d $file; and echo @$file/; or echo @$file
        end
    end
end

complete -c http2tcp -f
complete -c http2tcp -n __http2tcp_server -s s -l server -d 'Serve tunnels, behind a front end such as nginx'
complete -c http2tcp -n __http2tcp_server -l config -r -F -d 'Read this TOML file: named tokens, and every option that is not given elsewhere'
complete -c http2tcp -n __http2tcp_server -l allow -x -d 'Let tokens go only there: NAME:PORT, *.NAME:PORT, NETWORK:PORT, unix:/PATH'
complete -c http2tcp -n __http2tcp_server -l deny -x -d 'Let no token go there, whatever allows it'
complete -c http2tcp -n __http2tcp_server -l path -x -d 'Answer at this path only; 404 elsewhere'
complete -c http2tcp -n __http2tcp_server -l allow-origin -x -d 'Let this site\'s web pages open tunnels, as in https://example.com'
complete -c http2tcp -n __http2tcp_server -l connect -d 'Take CONNECT too, for nc -X connect, corkscrew or curl -p'
complete -c http2tcp -n __http2tcp_server -l tls-cert -r -F -d 'Serve https without a front end, with this certificate and its chain (PEM)'
complete -c http2tcp -n __http2tcp_server -l tls-key -r -F -d 'The key of --tls-cert, without a passphrase, where another file has it'
complete -c http2tcp -n __http2tcp_server -l admin -x -d 'Serve /metrics, /healthz and /readyz here'
complete -c http2tcp -n __http2tcp_server -l admin-name -x -d 'On loopback, answer at --admin to this host name too'
complete -c http2tcp -n __http2tcp_server -l trusted-proxy -x -a 'unix' -d 'Believe this front end about the client\'s address: an address, a network, or unix'
complete -c http2tcp -n __http2tcp_server -l forwarded-header -x -d 'The one header field in which front ends name the client'
complete -c http2tcp -n __http2tcp_server -l proxy-protocol -d 'Expect every connection to begin with a PROXY header (v1 or v2) that names the client'
complete -c http2tcp -n __http2tcp_server -l head-timeout -x -d 'How long a request may take to arrive'
complete -c http2tcp -n __http2tcp_server -l connect-timeout -x -d 'How long the server may take to reach a target'
complete -c http2tcp -n __http2tcp_server -l grace -x -d 'How long open tunnels may go on after SIGTERM'
complete -c http2tcp -n __http2tcp_server -l resume -x -d 'How long a client that lost its connection may be away'
complete -c http2tcp -n __http2tcp_server -l resume-window -x -d 'Bytes that a tunnel keeps until its client has acknowledged them, 256K to 64M'
complete -c http2tcp -n __http2tcp_server -l resume-memory -x -d 'Bytes that all tunnels together keep for that'
complete -c http2tcp -n __http2tcp_server -l max-detached -x -d 'How many tunnels may wait for their clients'
complete -c http2tcp -n __http2tcp_server -l max-detached-per-token -x -d 'Of these, how many of one token'
complete -c http2tcp -n __http2tcp_server -l node -x -d 'This server\'s name among several behind one front end: ids of its sessions begin with it'
complete -c http2tcp -n __http2tcp_server -l max-tunnels -x -d 'How many tunnels may be open at once'
complete -c http2tcp -n __http2tcp_server -l max-tunnels-per-token -x -d 'How many of them may be of one token'
complete -c http2tcp -n __http2tcp_server -l max-unauthenticated -x -d 'How many connections may be open without an accepted token'
complete -c http2tcp -n __http2tcp_server -l max-unauthenticated-per-address -x -d 'How many of these may come from one address'
complete -c http2tcp -n __http2tcp_server -l max-failures-per-minute -x -d 'How many wrong tokens one address may send before it gets 429'
complete -c http2tcp -n __http2tcp_server -l idle-timeout -x -d 'End tunnels that are silent both ways for this long'
complete -c http2tcp -n __http2tcp_server -l max-session -x -d 'End tunnels that have lasted this long'
complete -c http2tcp -n __http2tcp_server -l max-rate -x -d 'A tunnel\'s bytes a second each way, as in 10M'
complete -c http2tcp -n __http2tcp_server -l keep-sessions -d 'Let open tunnels go on when their token expires or is taken away'
complete -c http2tcp -n __http2tcp_server -l log-format -x -a 'text json' -d 'Log lines of text, or json: one object a line'
complete -c http2tcp -n __http2tcp_server -l log-file -r -F -d 'Log to this file; it may be rotated'
complete -c http2tcp -n __http2tcp_server -l new-token -x -d 'Print a new token and the lines of --config that let it in, and end'
complete -c http2tcp -n __http2tcp_server -l as -x -d 'With --check: say whether the token of this name may go there, and why'
complete -c http2tcp -n __http2tcp_client -s c -l client -d 'Open a tunnel, for stdin and stdout or from -l, -L or -D'
complete -c http2tcp -n __http2tcp_client -s e -l endpoint -x -d 'The server\'s location, as in https://example.com/~http2tcp/'
complete -c http2tcp -n __http2tcp_client -l transport -x -a 'auto tcp http2tcp/1.0 connect-tcp websocket' -d 'auto (the first that gets through), connect-tcp, tcp, http2tcp/1.0, or websocket'
complete -c http2tcp -n __http2tcp_client -s H -l header -x -a '(__http2tcp_at_file)' -d 'Add a header field; @FILE reads one a line'
complete -c http2tcp -n __http2tcp_client -l user-agent -x -d 'The User-Agent field'
complete -c http2tcp -n __http2tcp_client -l ca-file -r -F -d 'Verify the site against these authorities (PEM)'
complete -c http2tcp -n __http2tcp_client -l client-cert -r -F -d 'This client\'s own certificate (PEM), for a site that asks for one'
complete -c http2tcp -n __http2tcp_client -l client-key -r -F -d 'The key of --client-cert, where another file has it'
complete -c http2tcp -n __http2tcp_client -l tls-server-name -x -d 'Ask for this name in TLS (SNI), and verify the certificate for it'
complete -c http2tcp -n __http2tcp_client -l pin-sha256 -x -d 'Require this SHA-256 of the site\'s public key, besides a valid certificate'
complete -c http2tcp -n __http2tcp_client -s L -l local-forward -x -d 'Listen, and tunnel each connection there, as ssh -L does'
complete -c http2tcp -n __http2tcp_client -s D -l dynamic-forward -x -d 'Listen as a SOCKS5 proxy; the server looks names up'
complete -c http2tcp -n __http2tcp_client -l proxy -x -a '(__http2tcp_at_file) http:// https:// socks5:// socks5h://' -d 'Go through this http, https, socks5 or socks5h proxy; @FILE reads it'
complete -c http2tcp -n __http2tcp_client -l no-proxy -d 'Use no proxy, even if HTTPS_PROXY or its like names one'
complete -c http2tcp -n __http2tcp_client -l no-resume -d 'End when the connection is lost; do not reconnect and go on'
complete -c http2tcp -n __http2tcp_client -l fdpass -d 'For ssh\'s ProxyUseFdpass: hand ssh the connection and leave'
complete -c http2tcp -n __http2tcp_client -l insecure -d 'Trust any certificate'
complete -c http2tcp -n __http2tcp_client -l json -d 'With --check: print one JSON document'
complete -c http2tcp -n __http2tcp_client -l ssh-config -x -d 'Print these options as a block, Host NAME, for ~/.ssh/config, and end'
complete -c http2tcp -s t -l token -x -d 'The shared secret'
complete -c http2tcp -l token-file -r -F -d 'Read the token from a file\'s first line'
complete -c http2tcp -s d -l destination -x -d 'Where the tunnel goes'
complete -c http2tcp -s l -l listen -x -d 'Where to listen'
complete -c http2tcp -l keepalive -x -d 'Break silence this often, except on raw transports'
complete -c http2tcp -s v -l verbose -d 'Say more'
complete -c http2tcp -s q -l quiet -d 'Say errors only'
complete -c http2tcp -l check -d 'Client: say how far each hop of the way works'
complete -c http2tcp -l demo -d 'Serve, tunnel and check on loopback, and end'
complete -c http2tcp -l version -d 'Show the version and end'
complete -c http2tcp -s h -l help -d 'Show this page and end'
