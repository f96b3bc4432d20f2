# What CI runs.
check:
    .ci/run

# The tests alone, with what they need installed.
test:
    tests/run
