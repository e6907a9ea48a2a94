//! Messages of a bridge about what no result says.

use core::{cell::Cell, ffi::c_void, fmt, ptr};
use std::sync::{Arc, Mutex, PoisonError};

use coreml_sys::{CML_LOG_WARNING, CmlLogFn, CmlLogLevel, CmlStr};

use crate::{Bridge, Error, NativeError, Status, crossing::shield};

/// What a message of a bridge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LogLevel {
    /// A call succeeded, but did not do all as it was asked.
    Warning,
    /// Something was done that takes long or much memory. Also what a newer bridge says on a level of its own.
    Info,
}

impl LogLevel {
    const fn from_native(level: CmlLogLevel) -> LogLevel {
        if level == CML_LOG_WARNING { LogLevel::Warning } else { LogLevel::Info }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LogLevel::Warning => "warning",
            LogLevel::Info => "info",
        })
    }
}

/// A function that is told; boxed once more, so that a thin pointer to it can cross the table.
struct Listener(Box<dyn Fn(LogLevel, &str) + Send + Sync>);

/// The function that each bridge's table has, for as long as it may call it. Held while one is replaced.
static LISTENERS: Mutex<Vec<(Bridge, Box<Listener>)>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether this thread is inside a function that is told: it must not wait for its own end.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// # Safety
/// `context` is a [`Listener`] that lives, and `message` is UTF-8 that does not change, until this returns.
unsafe extern "C" fn tell(context: *mut c_void, level: CmlLogLevel, message: CmlStr) {
    // SAFETY: the caller's promise.
    let listener = unsafe { &*context.cast::<Listener>() };
    // SAFETY: as above.
    let message = String::from_utf8_lossy(unsafe { message.as_bytes() });
    let outer = INSIDE.replace(true);
    shield(|| (listener.0)(LogLevel::from_native(level), &message));
    INSIDE.set(outer);
}

impl Bridge {
    /// From now on `log` is told what no result says: decisions that the bridge took silently, such as an output backing that was
    /// not used ([`LogLevel::Warning`]), and models that were loaded ([`LogLevel::Info`]). It replaces the function that was set
    /// before, also by other users of the bridge in this process: there is one for each bridge.
    ///
    /// It is called on any thread, on several at once, and within the call that the message is about: it should be quick. What it
    /// panics with is caught and dropped. It may use the bridge, whose messages it is then not told of.
    ///
    /// ```
    /// # use coreml_bridge::{Bridge, Config, LogLevel};
    /// # use std::sync::{Arc, Mutex};
    /// # if cfg!(target_vendor = "apple") { return Ok(()) }
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits-f32.mlpackage");
    /// let bridge = Bridge::platform();
    /// let heard = Arc::new(Mutex::new(Vec::new()));
    /// let mine = Arc::clone(&heard);
    /// bridge.set_log(move |level, message| mine.lock().unwrap().push(format!("{level}: {message}")))?;
    /// let model = bridge.load(path, &Config::default())?;
    /// bridge.unset_log()?;
    /// assert!(heard.lock().unwrap()[0].starts_with("info: loaded"));
    /// # Ok::<(), coreml_bridge::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Log`] with the reason, which is [`Status::Busy`] within a function that is being told: it would wait for
    /// itself.
    pub fn set_log(self, log: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Result<(), Error> {
        self.replace_log(Some(Box::new(Listener(Box::new(log)))))
    }

    /// Nobody is told any more. When this returns, the function that was told is not running, is never called again, and was
    /// dropped.
    ///
    /// # Errors
    /// As [`Bridge::set_log`].
    pub fn unset_log(self) -> Result<(), Error> {
        self.replace_log(None)
    }

    fn replace_log(self, listener: Option<Box<Listener>>) -> Result<(), Error> {
        if INSIDE.get() {
            let message = "a function that is told would wait for its own end".into();
            let (status, domain) = (Status::Busy, Box::default());
            let source = NativeError { status, code: 0, domain, message, reason: None, source: None };
            return Err(Error::Log { source });
        }
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        let context = listener.as_deref().map_or(ptr::null(), ptr::from_ref).cast_mut().cast();
        let function: CmlLogFn = listener.is_some().then_some(tell);
        self.call(|table, error| {
            // SAFETY: the listener lives until another has taken its place, for the list keeps it; and from then on the bridge
            // does not call it.
            unsafe { (table.log_set)(table.own(), function, context, error) }
        })
        .map_err(|failure| failure.about(&Arc::from("the log"), |_, source| Error::Log { source }))?;
        let before = listeners.iter().position(|(bridge, _)| *bridge == self);
        let before = before.map(|index| listeners.swap_remove(index));
        listeners.extend(listener.map(|listener| (self, listener)));
        // Its drop is the user's code, which may come back here.
        drop(listeners);
        drop(before);
        Ok(())
    }
}
