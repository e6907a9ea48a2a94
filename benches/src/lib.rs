//! Criterion benches of every layer; `cargo xtask bench` runs them and prints the ratios.
