"""The wire, without I/O: bytes in, messages out, and back. No trio, no socket, no click, no logging."""
