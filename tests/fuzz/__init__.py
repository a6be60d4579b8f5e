"""
A differential fuzzer over the public surface: random calls, judged by an oracle that shares no code with the package.

    make fuzz                                                     20,000 calls over all surfaces
    python -m tests.fuzz --surface caches --seed 7 --case 123     one case again
    python -m tests.fuzz --planted                                whether it finds bugs that the package once had

A case is a function of surface, seed and number alone, whatever ran before it. What a call may come to:

- right: what the oracle says; undecided: where the oracle's own numbers are too close to tell
- refused: a ValueError, TypeError or OSError that names an argument of the call, where the contract allows it
- wrong: another answer, a refusal of what is legal, an answer to what must be refused
- bad error: any other exception
"""
