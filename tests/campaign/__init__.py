"""A randomised campaign: thousands of tunnels, each another way of using, shaping and ending one.

    python -m tests.campaign --seed S --count N [--only INDEX] [--jobs J]

A case is one tunnel. It is derived from (seed, index) alone, so a finding is repeated by one command, which the
summary prints. Many cases are in flight at once in one trio loop; the servers are real processes and are shared.

    cases       what a case is, and how (seed, index) becomes one
    talk        how a side sends, stalls, ends and reads, and the account that it gives of it
    peers       what a client can be: stdio, a forwarder, `open_tunnel`, and peers made by hand
    handmade    the bytes of those: raw, capsules and WebSocket frames, written without the product's code
    weather     what is in between: it shapes, delays, cuts by RST or FIN, and flips bits
    servers     the servers and nginx, and their records
    invariants  what a case promises, judged from the accounts and the record
    runner      one case from its beginning to its verdict, many at once, and the summary

The invariants go by what a case can promise:

- What was got is a prefix of what was sent. Bits are flipped only where TLS covers them.
- A clean end means whole: on capsules, on WebSocket, and wherever TLS shows the cut; on raw bytes where nothing was
  cut. Nobody is told an end that the other side has not said.
- Exit status 0 means that the target has all of it, on capsules.
- Where nothing cut a tunnel and no limit ended it, it is whole, ends cleanly on both sides, the client's exit status
  is 0, and the server's record says `closed` and counts the very bytes.
- Always: no traceback, an end in time, one record of it.

What is timed is generous, since a loaded machine is slow and not wrong; but every case has its deadline.
"""
