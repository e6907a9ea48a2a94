use std::time::Instant;

/// How a runtime is shut down.
///
/// See [`ModelClient::shutdown`](crate::ModelClient::shutdown) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Requests that have been handed in are still served, until `deadline`; then as [`Abort`](Self::Abort).
    Drain {
        /// The end of patience.
        deadline: Instant,
    },
    /// Requests that have not started are answered [`Error::ShutDown`](crate::Error::ShutDown) at once.
    Abort,
}

/// What became of everything when a runtime was shut down.
///
/// See [`ModelClient::shutdown`](crate::ModelClient::shutdown) for an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Predictions that ended during the shutdown, well or not.
    pub completed: u64,
    /// Requests that were answered [`Error::ShutDown`](crate::Error::ShutDown).
    pub closed: u64,
    /// Threads that were still inside the bridge when patience ended. They end when the bridge lets them go; their
    /// memory stays until then. [`ModelClient::stats`](crate::ModelClient::stats) says which.
    pub abandoned_threads: usize,
}
