# `just check` is the gate before a change is proposed: what the forge runs, cheapest first.
check:
    .ci/run fmt clippy doc deny test

# Everything the forge runs: the gate, the oldest supported compiler, and a minute of fuzzing.
ci:
    .ci/run

# Format all code.
fmt:
    cargo fmt --all

# All that reads foreign bytes against arbitrary ones, for so many seconds in all.
fuzz seconds="60":
    FUZZ_SECONDS={{ seconds }} .ci/run fuzz

# Five providers' dialects on loopback, a daemon, five tokens, five API calls.
demo:
    cargo demo

# Build, and install below PREFIX (/usr/local) in DESTDIR. Without just: the same two commands.
install:
    cargo build --release --locked -p tokend -p tokenctl
    systemd/install
