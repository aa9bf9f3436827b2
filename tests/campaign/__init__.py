"""A randomised campaign: thousands of tunnels, each used, disturbed and ended in another way.

    python -m tests.campaign --seed S --count N [--only INDEX] [--jobs J]

A case is one tunnel. It depends on (seed, index) only, so one command reproduces a finding; the summary prints it. Many
cases run at once in one trio loop; the servers are real processes, which all cases share.

    cases       what a case is, and how (seed, index) becomes one
    talk        how a side sends, pauses, ends and reads, and its account of that
    peers       the kinds of clients: stdio, a forwarder, `open_tunnel`, and peers made by hand
    handmade    the bytes of peers made by hand: raw, capsules and WebSocket frames, written without the product's code
    weather     the network between the ends: it shapes, delays, cuts by RST or FIN, and flips bits
    servers     the servers and nginx, and their records
    invariants  what a case promises, judged from the accounts and the record
    runner      one case from its beginning to its verdict, many at once, and the summary

The invariants depend on what a case can promise:

- What was received is a prefix of what was sent. Bits are flipped only where TLS covers them.
- After a clean end, all bytes have arrived: on capsules, on WebSocket, wherever TLS shows a cut, and on raw bytes that
  were not cut. No side sees an EOF that the other side has not sent.
- Exit status 0 means that the target has all bytes, on capsules.
- If nothing cut a tunnel and no limit ended it, all bytes arrive, it ends cleanly on both sides, the client's exit
  status is 0, and the server's record says `closed` with the exact numbers of bytes.
- Always: no traceback, an end in time, one record of it.

Time limits are generous, since a loaded machine is slow without being wrong; but every case has a deadline.
"""
