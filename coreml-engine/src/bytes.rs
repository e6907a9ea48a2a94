//! Read-only bytes that many may share: a file in memory, or a mapping of it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Immutable bytes behind a count, and a window on them. Cloning copies no byte.
///
/// Mapping a file is unsafe (another process may truncate it), so the engine never does: its caller passes the bytes,
/// from a `Vec` or from a mapping that it answers for.
///
/// ```
/// use coreml_engine::SharedBytes;
/// let bytes = SharedBytes::from(vec![1_u8, 2, 3]);
/// assert_eq!(&*bytes.slice(1..3).unwrap(), &[2, 3]);
/// assert!(bytes.slice(1..4).is_none());
/// ```
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    window: Range<usize>,
}

impl SharedBytes {
    /// All of what `owner` holds. `owner` must give the same bytes each time; it is asked anew at each access.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let window = 0..owner.as_ref().len();
        Self { owner: Arc::new(owner), window }
    }

    /// A window on these bytes, or `None` if it reaches beyond them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.window.len() {
            return None;
        }
        let start = self.window.start + range.start;
        Some(Self { owner: Arc::clone(&self.owner), window: start..start + range.len() })
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.window.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.window.len())
    }
}
