# The verbs of the house. CI calls the same ones (.ci/run).

# what a commit must pass, quickly
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo xtask tidy

# every test; absent privileges are named in the closing summary
test:
    cargo run --locked -p xtask -- test

# every benchmark, release build; NAME to run one
bench *NAME:
    cargo run --release --locked -p denizen-benches -- {{NAME}}

# licences, sources and bans of all dependencies (needs cargo-deny)
deny:
    cargo deny --locked check licenses bans sources

# all that CI does
ci:
    bash .ci/run
