//! How a model is to be loaded.

use core::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
};

use coreml_sys::{
    CML_COMPUTE_ALL, CML_COMPUTE_CPU_AND_GPU, CML_COMPUTE_CPU_AND_NEURAL_ENGINE, CML_COMPUTE_CPU_ONLY,
    CML_CONFIG_LOW_PRECISION_ACCUMULATION, CML_RESHAPE_FREQUENT, CML_RESHAPE_INFREQUENT,
    CML_SPECIALIZATION_DEFAULT, CML_SPECIALIZATION_FAST_PREDICTION, CmlComputeUnits, CmlConfig,
    CmlReshapeFrequency, CmlSpecialization, CmlStr,
};

/// Where a model may run; the numbers are `MLComputeUnits`'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum ComputeUnits {
    /// On the CPU only.
    CpuOnly = CML_COMPUTE_CPU_ONLY,
    /// On the CPU and the GPU, but not on the Neural Engine.
    CpuAndGpu = CML_COMPUTE_CPU_AND_GPU,
    /// Wherever the framework thinks best.
    #[default]
    All = CML_COMPUTE_ALL,
    /// On the CPU and the Neural Engine, but not on the GPU.
    CpuAndNeuralEngine = CML_COMPUTE_CPU_AND_NEURAL_ENGINE,
}

impl ComputeUnits {
    /// The number that stands for these units in the table.
    #[must_use]
    pub const fn to_native(self) -> CmlComputeUnits {
        self as CmlComputeUnits
    }
}

impl fmt::Display for ComputeUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ComputeUnits::CpuOnly => "CPU only",
            ComputeUnits::CpuAndGpu => "CPU and GPU",
            ComputeUnits::All => "all",
            ComputeUnits::CpuAndNeuralEngine => "CPU and Neural Engine",
        })
    }
}

/// How often the shapes of the inputs will change: a hint; the numbers are `MLReshapeFrequencyHint`'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum ReshapeFrequency {
    /// Often: a new shape should be quick.
    #[default]
    Frequent = CML_RESHAPE_FREQUENT,
    /// Seldom: predictions with a shape that was seen before should be quick.
    Infrequent = CML_RESHAPE_INFREQUENT,
}

/// What a model is specialized for on its devices: a hint; the numbers are `MLSpecializationStrategy`'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum Specialization {
    /// What suits most models.
    #[default]
    Default = CML_SPECIALIZATION_DEFAULT,
    /// Fast predictions, even if loading takes longer.
    FastPrediction = CML_SPECIALIZATION_FAST_PREDICTION,
}

/// How a model is to be loaded. The default leaves every choice to the framework.
///
/// ```
/// use coreml_bridge::{ComputeUnits, Config};
///
/// let config = Config { compute_units: ComputeUnits::CpuOnly, ..Config::default() };
/// assert_ne!(config, Config::default());
/// ```
///
/// Hints change how fast a model is, and never what it answers:
///
/// ```
/// use coreml_bridge::{Config, ReshapeFrequency, Specialization};
///
/// let config = Config {
///     reshape_frequency: ReshapeFrequency::Infrequent,
///     specialization: Specialization::FastPrediction,
///     ..Config::default()
/// };
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
/// # if cfg!(target_vendor = "apple") { return Ok(()) }
/// let model = coreml_bridge::Bridge::platform().load(path, &config)?;
/// # drop(model);
/// # Ok::<(), coreml_bridge::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// Where the model may run.
    pub compute_units: ComputeUnits,
    /// Which of the model's functions to load; none = its default.
    pub function: Option<String>,
    /// CPU threads inside one prediction; none = the bridge's choice. A bridge that cannot be told answers
    /// [`Error::Unsupported`](crate::Error::Unsupported).
    pub threads: Option<NonZeroU32>,
    /// Let the GPU accumulate in half precision.
    pub low_precision_accumulation: bool,
    /// The name that tools show for the model; none = its file's.
    pub display_name: Option<String>,
    /// How often the shapes of the inputs will change. Core ML needs macOS 14.4 or iOS 17.4 to be told that it is seldom.
    pub reshape_frequency: ReshapeFrequency,
    /// What the model is specialized for. Core ML needs macOS 15 or iOS 18 to be told.
    pub specialization: Specialization,
    /// The GPU to run on, where the model runs on a GPU: the [`Device::registry_id`](crate::Device::registry_id) of one that
    /// [`Bridge::info`](crate::Bridge::info) lists; none = any. [`Error::Unsupported`](crate::Error::Unsupported) if there is no
    /// such GPU, or before macOS 14 or iOS 17; compute units without a GPU are refused with it.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config};
    /// let devices = Bridge::platform().info()?.devices;
    /// let preferred_device = devices.iter().filter(|device| device.kind == "gpu").find_map(|gpu| gpu.registry_id);
    /// let config = Config { preferred_device, ..Config::default() };
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// let model = Bridge::platform().load(path, &config)?;
    /// # drop(model);
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    pub preferred_device: Option<NonZeroU64>,
}

impl Config {
    /// Borrows the names: the result must not outlive `self`.
    pub(crate) fn to_native(&self) -> CmlConfig {
        let Config {
            compute_units,
            function,
            threads,
            low_precision_accumulation,
            display_name,
            reshape_frequency,
            specialization,
            preferred_device,
        } = self;
        let name = |name: &Option<String>| name.as_deref().map_or(CmlStr::NONE, CmlStr::from);
        CmlConfig {
            size: size_of::<CmlConfig>() as u32,
            compute_units: compute_units.to_native(),
            flags: if *low_precision_accumulation { CML_CONFIG_LOW_PRECISION_ACCUMULATION } else { 0 },
            threads: threads.map_or(0, NonZeroU32::get),
            function_name: name(function),
            display_name: name(display_name),
            reshape_frequency: *reshape_frequency as CmlReshapeFrequency,
            specialization: *specialization as CmlSpecialization,
            preferred_device: preferred_device.map_or(0, NonZeroU64::get),
        }
    }
}
