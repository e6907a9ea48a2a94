//! What an inference thread runs on: the bridge, or a stand-in in the tests of this crate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use coreml_bridge::{Bridge, Config, Features, ModelDescription, ModelRef, PredictOptions, Timings};

use crate::InferenceRequest;
use crate::source::LoadStage;

type Result<T> = std::result::Result<T, coreml_bridge::Error>;

/// Makes instances of models. Called on the thread that will own the instance.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Whether it can be told how many threads to use inside one prediction.
    fn takes_threads(&self) -> bool;
    /// Tells how far it has come, once it is past [`LoadStage::Waiting`].
    fn instantiate(
        &self,
        model_ref: ModelRef,
        path: &Path,
        config: &Config,
        progress: &dyn Fn(LoadStage),
    ) -> Result<Box<dyn Instance>>;

    /// Its name and version, and the build of the system: what it compiles is of use to the same only. `None`: it does not
    /// compile.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Compiles a model into a folder; gives the path.
    fn compile(&self, source: &Path, _folder: &Path) -> Result<PathBuf> {
        Ok(source.to_owned())
    }
}

/// One thread's own instance of a model.
pub(crate) trait Instance {
    fn description(&self) -> Arc<ModelDescription>;
    fn predict(&mut self, request: &InferenceRequest) -> Result<(Features, Timings)>;
}

impl Backend for Bridge {
    fn takes_threads(&self) -> bool {
        self.info().is_ok_and(|info| info.features.iter().any(|feature| feature == "threads"))
    }

    fn instantiate(
        &self,
        model_ref: ModelRef,
        path: &Path,
        config: &Config,
        progress: &dyn Fn(LoadStage),
    ) -> Result<Box<dyn Instance>> {
        progress(LoadStage::Loading);
        let handle = self.load(path, config)?;
        let description = Arc::new(handle.description().clone());
        coreml_bridge::register_model_as(model_ref, handle);
        Ok(Box::new(Registered { model_ref, description }))
    }

    fn identity(&self) -> Option<String> {
        // Without them entries of another build could be taken for its own.
        let info = self.info().ok()?;
        Some(format!("{}\n{}\n{}", info.name, info.version, info.system))
    }

    fn compile(&self, source: &Path, folder: &Path) -> Result<PathBuf> {
        (*self).compile(source, Some(folder))
    }
}

/// A model in this thread's registry; it leaves the registry with this value.
struct Registered {
    model_ref: ModelRef,
    description: Arc<ModelDescription>,
}

impl Instance for Registered {
    fn description(&self) -> Arc<ModelDescription> {
        Arc::clone(&self.description)
    }

    fn predict(&mut self, request: &InferenceRequest) -> Result<(Features, Timings)> {
        // The registry is this thread's and the entry this value's.
        let Some(handle) = coreml_bridge::get_model_handle(self.model_ref) else {
            unreachable!("the model is registered for as long as this value lives")
        };
        if let Some(procedure) = &request.procedure {
            let begin = Instant::now();
            let outputs = procedure.run(&handle, &request.features)?;
            let mut timings = Timings::default();
            timings.run = begin.elapsed();
            return Ok((outputs, timings));
        }
        let prediction = if request.wanted.is_empty() {
            handle.predict_with(&request.features, PredictOptions::default())
        } else {
            let wanted = request.wanted.iter().map(String::as_str).collect::<Vec<_>>();
            handle.predict_with(
                &request.features,
                PredictOptions { wanted: Some(&wanted), ..PredictOptions::default() },
            )
        }?;
        Ok((prediction.outputs, prediction.timings))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        drop(coreml_bridge::unload_model(self.model_ref));
    }
}
