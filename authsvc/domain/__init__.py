"""The rules of the service: plain values in, values or a named error out; no I/O."""
