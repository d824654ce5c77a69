"""What runtimes can do in low precision, how fast, and where they fail: data, not code.

One module per family of targets holds rows (``schema``), ``conditions`` are the predicates they
name, ``cost`` predicts times, ``registry`` finds targets, ``probe`` checks the rows on the runtime.
"""
