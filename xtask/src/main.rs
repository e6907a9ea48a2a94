//! Development tasks; `cargo xtask --help` lists them.

mod apple_check;
mod asan;
mod bench;
mod bindings;
mod conformance;
mod differential;
mod fuzz;
mod install_c;
mod layers;
mod models;
mod prove;
mod python;
mod run;
mod shim;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Parser, Subcommand};

/// Development tasks of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Type-check the Rust side for Apple's targets (Debian 12 only; downloads a compiler of 115 MB, needs nightly cargo).
    AppleCheck,
    /// Run the tests of the unsafe crates under AddressSanitizer (needs a nightly compiler).
    Asan,
    /// Run the benches and print ratios against named references.
    #[command(after_help = "Example: cargo xtask bench --against onnxruntime --models minilm --threads 2")]
    Bench(bench::Arguments),
    /// Regenerate coreml-sys/src/bindings.rs from the C header (needs libclang).
    Bindings {
        /// Compare with the committed file instead of writing it.
        #[arg(long)]
        check: bool,
    },
    /// Run coremltools' own tests against the portable engine (needs Python 3.11, PyPI and gigabytes).
    #[command(after_help = "Example: cargo xtask conformance --sample 1/40 --only ops/tests/iOS14")]
    Conformance(conformance::Arguments),
    /// Hold Core ML against the portable engine, on every model there is (needs a Mac).
    #[command(after_help = "Example: cargo xtask differential --only nn/conv")]
    Differential(differential::Arguments),
    /// Run the fuzz targets (needs a nightly compiler and cargo-fuzz).
    #[command(after_help = "Example: cargo xtask fuzz model --seconds 600")]
    Fuzz {
        /// Which target; all if none.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Afterwards, add what was found to what later runs start from: the fewest inputs that reach as much.
        #[arg(long)]
        keep: bool,
    },
    /// Build the C library and install it, with its headers and files for pkg-config.
    InstallC {
        /// Where to: `lib` and `include` are made there.
        #[arg(long, value_name = "FOLDER")]
        prefix: PathBuf,
    },
    /// Prove with `cargo tree` that the arrows between the crates point down.
    Layers,
    /// Run the client's queue under loom: every interleaving of a few threads.
    Loom,
    /// Bring the models that are not committed to models/cache (needs Python 3.11 and PyPI).
    Models,
    /// Prove what the client promises: eleven proofs that print their figures and fail on their bounds.
    #[command(after_help = "Example: cargo xtask prove soak --soak 60")]
    Prove(prove::Arguments),
    /// Run the tests of the Python package (needs Python 3.11 and PyPI).
    Python {
        /// An environment with the packages of models/requirements.txt; made in models/cache if none.
        #[arg(long, value_name = "FOLDER")]
        environment: Option<PathBuf>,
    },
    /// Compile, run and attack the Objective-C shim off Apple (needs clang and GNUstep, see bridge-objc/README.md).
    Shim {
        /// Make the list of Apple's declarations anew from the unpacked objc2 crates in this folder.
        #[arg(long, value_name = "FOLDER")]
        known: Option<PathBuf>,
    },
}

/// The repository's root.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Builds the C library, optimised, and puts it into `prefix`.
fn install_library(root: &Path, prefix: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    run::visible(cargo.current_dir(root).args(["build", "--release", "--package", "coreml-capi"]))?;
    let built = run::target(root).join("release");
    for path in install_c::install(root, &built, prefix, env!("CARGO_PKG_VERSION"))? {
        println!("{}", path.display());
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let root = root();
    match Arguments::parse().verb {
        Verb::AppleCheck => apple_check::run(&root),
        Verb::Asan => asan::run(&root),
        Verb::Bench(arguments) => bench::run(&root, &arguments),
        Verb::Bindings { check } => bindings::run(&root, check),
        Verb::Conformance(arguments) => conformance::run(&root, &arguments),
        Verb::Differential(arguments) => differential::run(&root, &arguments),
        Verb::Fuzz { target, seconds, keep } => fuzz::run(&root, target.as_deref(), seconds, keep),
        Verb::InstallC { prefix } => install_library(&root, &prefix),
        Verb::Layers => layers::run(&root),
        Verb::Loom => prove::loom(&root),
        Verb::Models => models::run(&root),
        Verb::Prove(arguments) => prove::run(&root, &arguments),
        Verb::Python { environment } => python::run(&root, environment.as_deref()),
        Verb::Shim { known } => shim::run(&root, known.as_deref()),
    }
}
