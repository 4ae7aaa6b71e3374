"""The rules: values in, values or a named error out; no I/O."""
