use std::fmt;
use std::sync::Arc;

/// Whom a runtime asks how short of memory the system is; `None` if it cannot know.
pub(crate) type PressureSource = Arc<dyn Fn() -> Option<MemoryPressure> + Send + Sync>;

/// How short of memory the system is; see [`ModelClient::set_memory_pressure`](crate::ModelClient::set_memory_pressure).
///
/// See [`of_system`](Self::of_system) for an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryPressure {
    /// It is not.
    #[default]
    Normal,
    /// Idle models are evicted until half of the memory is given back.
    Warning,
    /// All idle models are evicted, and loads are refused.
    Critical,
}

impl fmt::Display for MemoryPressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

impl MemoryPressure {
    /// What Linux says of the whole system, from the pressure stall information of the last ten seconds: `Warning` if
    /// some task stood still for want of memory for a tenth of the time, `Critical` if all did. `None` elsewhere, and on
    /// kernels without it.
    ///
    /// ```
    /// use coreml_client::{MemoryPressure, ModelClient};
    ///
    /// let client = ModelClient::builder().build();
    /// // For example once a second:
    /// client.set_memory_pressure(MemoryPressure::of_system().unwrap_or_default());
    /// ```
    ///
    /// [`follow_memory_pressure`](crate::ModelClientBuilder::follow_memory_pressure) does so.
    pub fn of_system() -> Option<Self> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        Self::parse(&std::fs::read_to_string("/proc/pressure/memory").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        const PERCENT: f64 = 10.0;
        let share = |line: &str| -> Option<f64> {
            line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
        };
        let stalled = |kind: &str| text.lines().find(|line| line.starts_with(kind)).and_then(share);
        let (some, full) = (stalled("some")?, stalled("full").unwrap_or(0.0));
        Some(match () {
            () if full >= PERCENT => Self::Critical,
            () if some >= PERCENT => Self::Warning,
            () => Self::Normal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read_as_it_writes_them() {
        let text = |some, full| {
            format!(
                "some avg10={some} avg60=0.00 avg300=0.00 total=1\nfull avg10={full} avg60=0.00 avg300=0.00 total=0\n"
            )
        };
        assert_eq!(MemoryPressure::parse(&text("0.00", "0.00")), Some(MemoryPressure::Normal));
        assert_eq!(MemoryPressure::parse(&text("12.50", "3.10")), Some(MemoryPressure::Warning));
        assert_eq!(MemoryPressure::parse(&text("80.00", "44.00")), Some(MemoryPressure::Critical));
        assert_eq!(MemoryPressure::parse("something else"), None);
    }
}
