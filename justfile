# The everyday commands. `just` lists them; each is one line that also works without `just`.

_default:
    @just --list

# Builds everything, debug.
build:
    cargo build --workspace --all-targets

# The README's test command.
test:
    cargo test --workspace --locked

# Tests of one crate, for instance `just test-one storage`.
test-one CRATE *ARGS:
    cargo test -p timberline-{{CRATE}} {{ARGS}}

lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:
    cargo fmt --all

# Checks licences, sources, bans and advisories; needs cargo-deny.
deny:
    cargo deny check

# The crates' documentation, as strict as in CI.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Three brokers, a real file, two kills in the middle, all of it back.
demo:
    cargo run --release --bin timberline -- demo

# A broker on loopback.
server *ARGS:
    cargo run --release --bin timberline -- server {{ARGS}}

# A failure rehearsed under load, for instance `just drill leader-kill --times 20`.
drill KIND *ARGS:
    cargo run --release --bin timberline -- drill {{KIND}} {{ARGS}}

# What clusters must bear, at length: a GiB through kills, pauses and drains, growing and shrinking, 2 GiB rebuilt twice.
chaos:
    CHAOS_BYTES=1073741824 cargo test --release --locked -p timberline-cli --test product -- --nocapture a_file_comes_back
    cargo run --release --bin timberline -- drill resize --times 6 --partitions 12 --rate 1500
    cargo run --release --bin timberline -- drill rebuild --size 2GiB --trimmed 256MiB --rate 10MB
    cargo run --release --bin timberline -- drill rebuild --size 2GiB --trimmed 0 --rate 10MB --by new-broker

# One of the programs behind docs/benchmarks.md, for instance `just bench disk_sync`.
bench NAME *ARGS:
    cargo run --release -p timberline-benches --bin {{NAME}} -- {{ARGS}}

# Crash points on the fault disk, by number of seeds; each planted bug must be found.
crash SEEDS="2000":
    CRASH_SEEDS={{SEEDS}} cargo test --release --locked -p timberline-tests --test crash -- --nocapture

# Brokers, disks and network under one seed, by number of seeds, on both cores.
sim SEEDS="2000":
    SIM_SEEDS={{SEEDS}} cargo test --release --locked -p timberline-tests --test sim -- --nocapture seeds

# One history of the simulator, with its trace.
sim-seed SEED:
    SIM_SEED={{SEED}} cargo test --release --locked -p timberline-tests --test sim -- --nocapture seeds

# Planted mistakes, each of which the simulator must find; by name also the rare ones.
sim-bugs BUG="":
    SIM_BUG={{BUG}} cargo test --release --locked -p timberline-tests --test sim -- --nocapture planted

# Rewrites the golden fixtures of the on-disk format: only together with docs/storage-format.md.
fixtures:
    UPDATE_FIXTURES=1 cargo test -p timberline-storage --test format

# Rewrites the generated reference pages.
docs:
    UPDATE_DOCS=1 cargo test -p timberline-tests --test docs

# What must hold before a change goes in.
ci:
    bash .ci/run
