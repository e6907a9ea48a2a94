//! Memory for intermediate results that hold no meaning between two uses.

use std::cell::Cell;

thread_local! {
    static IDLE: Cell<[Vec<f32>; 4]> = const { Cell::new([Vec::new(), Vec::new(), Vec::new(), Vec::new()]) };
}

/// Elements that a thread keeps for the next kernel; what is larger is given back to the system.
const KEPT: usize = 4 << 20;

/// Initialised memory with arbitrary contents; the thread gets it back on drop.
///
/// A buffer never leaves the thread's store while it is in use, so a kernel that runs on this thread meanwhile (a thread that
/// waits for others runs their work) takes another one.
pub(crate) struct Scratch {
    data: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` elements, all of them numbers from earlier uses.
    pub(crate) fn new(len: usize) -> Self {
        let mut idle = IDLE.take();
        // The smallest that is large enough, else the largest.
        let best = (0..idle.len()).min_by_key(|&i| {
            let has = idle[i].len();
            if has >= len { (false, has) } else { (true, usize::MAX - has) }
        });
        let mut data = best.map(|i| std::mem::take(&mut idle[i])).unwrap_or_default();
        IDLE.set(idle);
        if data.len() < len {
            data.clear();
            data.resize(len, 0.0);
        }
        Self { data, len }
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.data.len() > KEPT {
            return;
        }
        let mut idle = IDLE.take();
        // In place of the smallest.
        if let Some(place) = idle.iter_mut().min_by_key(|v| v.len())
            && place.len() < self.data.len()
        {
            *place = std::mem::take(&mut self.data);
        }
        IDLE.set(idle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_never_by_two_at_once() {
        let first = Scratch::new(100);
        let address = first.as_ptr();
        let second = Scratch::new(100);
        assert_ne!(address, second.as_ptr());
        drop(first);
        assert_eq!(Scratch::new(50).as_ptr(), address);
    }
}
