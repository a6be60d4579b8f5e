"""
Mutation testing of the models and the training: small faults are planted one by one, and the tests must notice.

    python -m tests.mutation                      220 mutants, drawn with seed 15, two at a time
    python -m tests.mutation --mutants 20 --files "src/mqt_llava/training/*.py" --tests tests/training

Run it from the root of the repository. Mutants are drawn uniformly over all places where an operator applies, and
written down before a test runs. A mutant meets the tests that execute its line, the fastest first. What is done lies
in `runs/mutation/`, by commit, so a run that was stopped goes on.

- killed: a test fails that passes without the mutant, or does not end
- survived: no test fails, or none within the seconds of CPU time that it was given
- equivalent: survived, and `equivalent.json` says why no test can tell; the score leaves it out
"""
