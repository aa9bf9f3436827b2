"""The network, on trio: plain values and callables come in; settings and policy stay outside."""
