# Before every commit: format, clippy and unit tests. No root, under two minutes once everything is built.
quick:
    .ci/run fmt clippy unit

# The gate before a change is proposed, cheapest step first. As root.
check:
    .ci/run fmt clippy doc deny test

# Everything the forge runs: the gate, the oldest supported compiler, and a minute of fuzzing. As root.
ci:
    .ci/run

# Format all code.
fmt:
    cargo fmt --all

# Fuzz everything that reads foreign bytes, for this many seconds in all.
fuzz seconds="60":
    FUZZ_SECONDS={{ seconds }} .ci/run fuzz

# Five providers on loopback, a daemon, and what happens when one of them fails.
demo:
    cargo demo

# Build, and install below PREFIX (/usr/local) in DESTDIR. Without just: the same two commands.
install:
    cargo build --release --locked -p tokend -p tokenctl -p tokend-proxy
    systemd/install
