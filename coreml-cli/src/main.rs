//! `coreml`: looks into Core ML models, runs them on any platform, and watches programs that do.

mod inspect;
mod predict;
mod top;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use coreml_bridge::{Bridge, Config, CoreMlHandle};

/// Look into Core ML models and run them, on any platform.
#[derive(Parser)]
#[command(name = "coreml", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show what a model takes and gives, who made it, what is inside, and whether it runs here.
    #[command(after_help = "Examples:\n  \
        coreml inspect models/digits/digits.mlpackage\n  \
        coreml inspect model.mlmodelc --ops\n\n\
        Costs are estimates from the declared shapes. \"At least\": a dimension that only a prediction tells counts as 1.")]
    Inspect {
        #[command(flatten)]
        model: ModelArguments,
        /// List every op or layer, with its cost.
        #[arg(long)]
        ops: bool,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a model once.
    #[command(after_help = "Examples:\n  \
        coreml predict models/digits/digits.mlpackage --input image=models/digits/seven.png\n  \
        coreml predict model.mlmodel --input image=cat.png --input threshold=0.5.json --output out/\n\n\
        A file ending in .npy is a NumPy array, .json a number, a string, a list or an object; .png, .jpg and .jpeg are \
        pictures, which become what the model takes: an image of its size, or a tensor [.., C, H, W] of values 0 to 1. \
        The states of a stateful model are empty at first.")]
    Predict {
        #[command(flatten)]
        model: ModelArguments,
        /// An input, as NAME=FILE. Once for each.
        #[arg(long = "input", short = 'i', value_name = "NAME=FILE")]
        inputs: Vec<String>,
        /// Write each output to FOLDER/NAME.npy (images to .png, the rest to .json) as well.
        #[arg(long = "output", short = 'o', value_name = "FOLDER")]
        output: Option<PathBuf>,
        /// Print the outputs as JSON, whole.
        #[arg(long)]
        json: bool,
    },
    /// Watch the models of a running program: throughput, latency, queues, outcomes, threads, memory.
    #[command(after_help = "Examples:\n  \
        coreml top 127.0.0.1:9800\n  \
        coreml top /run/user/1000/my-program.sock --once --json\n\n\
        The program must have started an endpoint: `coreml_client::monitor::Monitor::start`, of the feature `monitor`.")]
    Top(top::Options),
}

#[derive(Args)]
struct ModelArguments {
    /// The model: .mlmodel, .mlpackage or .mlmodelc.
    model: PathBuf,
    /// The function to load; the model's default one if not given.
    #[arg(long)]
    function: Option<String>,
}

impl ModelArguments {
    fn load(&self) -> anyhow::Result<CoreMlHandle> {
        let config = Config { function: self.function.clone(), ..Config::default() };
        Ok(Bridge::platform().load(&self.model, &config)?)
    }
}

fn main() -> anyhow::Result<()> {
    match run() {
        // Whoever reads has seen enough, as `head` has.
        Err(error) if is_closed_pipe(&error) => Ok(()),
        other => other,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Inspect { model, ops, json } => inspect::run(&model, ops, json),
        Verb::Predict { model, inputs, output, json } => {
            predict::run(&model.load()?, &inputs, output.as_deref(), json)
        }
        Verb::Top(options) => top::run(&options),
    }
}
