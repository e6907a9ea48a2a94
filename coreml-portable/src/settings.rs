//! What the process says to the engine beside what a call can: the C table has no words for it, for Core ML needs none.

use std::sync::{LazyLock, PoisonError, RwLock};

use coreml_engine::{CustomError, CustomLayer, CustomLayers, CustomSpec, Limits, LoadOptions};

#[derive(Clone, Default)]
struct Settings {
    limits: Limits,
    custom_layers: CustomLayers,
    /// Counts changes: a model of earlier settings is not shared with those of later ones.
    changes: u64,
}

static SETTINGS: LazyLock<RwLock<Settings>> = LazyLock::new(RwLock::default);

fn change(change: impl FnOnce(&mut Settings)) {
    let mut settings = SETTINGS.write().unwrap_or_else(PoisonError::into_inner);
    change(&mut settings);
    settings.changes += 1;
}

/// Lets neural networks that are loaded from now on have custom layers of a class: `make` makes a layer of it as a model
/// describes it. As on Apple's systems, where Core ML looks for an Objective-C class of that name, a class is the whole process's.
/// One of that name that is there is replaced.
///
/// ```
/// use coreml_portable::{CustomError, CustomLayer, CustomTensor, register_custom_layer};
///
/// /// Leaves everything as it is.
/// struct Same;
///
/// impl CustomLayer for Same {
///     fn output_shapes(&self, inputs: &[Vec<Option<usize>>]) -> Result<Vec<Vec<Option<usize>>>, CustomError> {
///         Ok(inputs.to_vec())
///     }
///
///     fn evaluate(&self, inputs: &[CustomTensor<'_>], outputs: &mut [&mut [f32]]) -> Result<(), CustomError> {
///         outputs[0].copy_from_slice(inputs[0].data);
///         Ok(())
///     }
/// }
///
/// register_custom_layer("Same", |_| Ok(Box::new(Same)));
/// ```
pub fn register_custom_layer(
    class: &str,
    make: impl Fn(&CustomSpec) -> Result<Box<dyn CustomLayer>, CustomError> + Send + Sync + 'static,
) {
    change(|settings| {
        settings.custom_layers = std::mem::take(&mut settings.custom_layers).with(class, make);
    });
}

/// Sets what models that are loaded from now on may use; those that are there keep their limits.
///
/// ```
/// let mut limits = coreml_portable::Limits::default();
/// limits.loop_iterations = 10_000; // for models that nobody here knows
/// coreml_portable::set_limits(limits);
/// ```
pub fn set_limits(limits: Limits) {
    change(|settings| settings.limits = limits);
}

/// Calls back with how a model is loaded, and a number that another answer comes with another of.
pub(crate) fn with_options<R>(function: Option<&str>, load: impl FnOnce(&LoadOptions<'_>, u64) -> R) -> R {
    // A load is long, and a setting is not to wait for it.
    let Settings { limits, custom_layers, changes } =
        SETTINGS.read().unwrap_or_else(PoisonError::into_inner).clone();
    let mut options = LoadOptions::default().limits(limits).custom_layers(&custom_layers);
    options.function = function;
    load(&options, changes)
}
