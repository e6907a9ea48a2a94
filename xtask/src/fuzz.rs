//! `cargo xtask fuzz`: runs the fuzz targets (needs a nightly compiler and `cargo-fuzz`).

use std::path::Path;
use std::process::Command;

use crate::run::visible;

const TARGETS: &[&str] = &["manifest", "weights", "compiled", "model"];

/// Runs one target, or all, for that many seconds each.
pub(crate) fn run(root: &Path, target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let targets: Vec<&str> = match target {
        Some(target) => {
            anyhow::ensure!(TARGETS.contains(&target), "no fuzz target `{target}`; there are {TARGETS:?}");
            vec![target]
        }
        None => TARGETS.to_vec(),
    };
    for target in targets {
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root.join(&corpus))?;
        let time = format!("-max_total_time={seconds}");
        let seeds = format!("fuzz/seeds/{target}");
        let mut command = Command::new("cargo");
        command.current_dir(root).args(["+nightly", "fuzz", "run", target, &corpus, &seeds, "--", &time]);
        // A hang is a finding, and so is memory that no file of this size justifies.
        command.args(["-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-print_final_stats=1"]);
        // Another toolchain's cargo may have set these for the program that runs this.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTFLAGS");
        visible(&mut command)?;
    }
    Ok(())
}
